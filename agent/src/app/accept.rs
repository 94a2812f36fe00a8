//! From an accepted socket to a session.

use std::{os::fd::AsFd, sync::Arc};

use tokio::net::TcpStream;

use super::{helper::Helper, lanes::Lanes};
use crate::{
    action::ProcessFacts,
    bpf::Kernel,
    identity,
    net::{Gathered, listener::Place},
    record::{Event, EventBody},
    session::{self, Arrival, House},
};

/// Takes a redirected connection; never blocks.
pub(super) fn arrival(
    lanes: &Lanes,
    (house, kernel, helper): (&Arc<House>, &Arc<Kernel>, &Arc<Helper>),
    stream: TcpStream,
    place: Place,
) {
    let origin = match kernel.origin(stream.as_fd()) {
        Ok(origin) => origin,
        Err(error) => {
            // Somebody connected to the port by themselves, or the kernel lost track: either way there is no identity.
            return refused(house, format!("connection without origin: {error}"), ProcessFacts::default());
        }
    };
    let process = ProcessFacts { pid: origin.pid, uid: origin.uid, comm: origin.comm, exe: None };
    let session = house.sessions.by_cgroup(origin.cgroup_id);
    let (house, helper) = (house.clone(), helper.clone());
    // Its readiness is told to the runtime that reads it.
    let stream = match stream.into_std() {
        Ok(stream) => stream,
        Err(error) => return refused(&house, format!("connection that cannot be read: {error}"), process),
    };
    // Where its last packet was handled: of a client on this host, where it runs. [Linux 3.19]
    let processor = socket2::SockRef::from(&stream).cpu_affinity().ok();
    lanes.spawn(processor, async move {
        let known = process.clone();
        let process = tokio::task::spawn_blocking(move || with_executable(&helper, process)).await.unwrap_or(known);
        let Some(session) = session else {
            let what = format!("{}: cgroup {} has no session", origin.address, origin.cgroup_id);
            return refused(&house, what, process);
        };
        let stream = match TcpStream::from_std(stream) {
            Ok(stream) => stream,
            Err(error) => return refused(&house, format!("connection that cannot be read: {error}"), process),
        };
        let arrival = Arrival { io: Box::new(Gathered::new(stream)), origin: origin.address, session, process };
        session::serve(house, arrival).await;
        drop(place);
    });
}

/// Adds the executable to what the kernel took down of a process, if /proc still shows the same under that pid. Asks the
/// helper, who may look; may block.
pub(super) fn with_executable(helper: &Helper, process: ProcessFacts) -> ProcessFacts {
    let exe = helper.executable(process.pid);
    let now = identity::process_facts(process.pid);
    let exe = exe.filter(|_| now.comm == process.comm && now.uid == process.uid);
    ProcessFacts { exe, ..process }
}

fn refused(house: &House, what: String, process: ProcessFacts) {
    tracing::warn!(pid = process.pid, "refused: {what}");
    let event = Event { body: EventBody::Refused { what, process }, ..Event::daemon("") };
    if let Err(error) = house.recorder.append(event) {
        tracing::error!(%error, "a refused connection could not be recorded");
    }
}
