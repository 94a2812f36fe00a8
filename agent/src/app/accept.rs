//! From an accepted socket to a session.

use std::{os::fd::AsFd, sync::Arc};

use tokio::net::TcpStream;

use crate::{
    action::ProcessFacts,
    bpf::Kernel,
    identity,
    net::listener::Place,
    record::{Event, EventBody},
    session::{self, Arrival, House},
};

/// Takes a redirected connection; never blocks.
pub(super) fn arrival(house: &Arc<House>, kernel: &Arc<Kernel>, stream: TcpStream, place: Place) {
    let origin = match kernel.origin(stream.as_fd()) {
        Ok(origin) => origin,
        Err(error) => {
            // Somebody connected to the port by themselves, or the kernel lost track: either way there is no identity.
            return refused(house, format!("connection without origin: {error}"), ProcessFacts::default());
        }
    };
    let process = ProcessFacts { pid: origin.pid, uid: origin.uid, comm: origin.comm, exe: None };
    let process = with_executable(process);
    let Some(session) = house.sessions.by_cgroup(origin.cgroup_id) else {
        return refused(house, format!("{}: cgroup {} has no session", origin.address, origin.cgroup_id), process);
    };
    let house = house.clone();
    tokio::spawn(async move {
        let arrival = Arrival { io: Box::new(stream), origin: origin.address, session, process };
        session::serve(house, arrival).await;
        drop(place);
    });
}

/// Adds the executable to what the kernel took down of a process, if /proc still shows the same under that pid.
pub(super) fn with_executable(process: ProcessFacts) -> ProcessFacts {
    let now = identity::process_facts(process.pid);
    let exe = if now.comm == process.comm && now.uid == process.uid { now.exe } else { None };
    ProcessFacts { exe, ..process }
}

fn refused(house: &House, what: String, process: ProcessFacts) {
    tracing::warn!(pid = process.pid, "refused: {what}");
    let event = Event { body: EventBody::Refused { what, process }, ..Event::daemon("") };
    if let Err(error) = house.recorder.append(event) {
        tracing::error!(%error, "a refused connection could not be recorded");
    }
}
