//! Every way out of a session of a workload, tried.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{Ipv4Addr, Ipv6Addr},
    process::Command,
};

use nix::ifaddrs::getifaddrs;

use super::{
    Finding, Grade, Runner,
    attempts::{self, Attempt, Road},
    host::{Features, LACKS_LSM, LACKS_UNIX, LANDLOCK_SCOPES},
    witness::{Aim, Setup, Whose, Witness, WitnessError},
};

/// Why nothing could be tried.
#[derive(Debug, thiserror::Error)]
pub enum RoadsError {
    /// Nobody watches.
    #[error(transparent)]
    Witness(#[from] WitnessError),
    /// No session of the workload ran, or it ended in the middle.
    #[error("no session of `{workload}` runs the attempts")]
    Session {
        /// Which.
        workload: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Somebody wants it to end.
    #[error("the attempts were interrupted")]
    Interrupted,
}

/// Tries every way out of the session that `command` starts [`attempts::serve`] in. `interrupted` is asked before each
/// attempt. Whatever the end, all that was made for it is removed.
pub fn findings(
    setup: Setup,
    mut command: Command,
    features: Features,
    interrupted: impl Fn() -> bool,
) -> Result<Vec<Finding>, RoadsError> {
    let workload = setup.workload.clone();
    let all = attempts::all();
    let mut witness = Witness::new(setup)?;
    witness.prove_awake()?;
    // Nothing is held for doctor: an id that does not exist is refused later than one who may not ask.
    let target = witness.target("doctor");
    let broken = |source| match interrupted() {
        // Who interrupts at a terminal ends the session as well.
        true => RoadsError::Interrupted,
        false => RoadsError::Session { workload: workload.clone(), source },
    };
    command.stderr(witness.standard_error()?);
    let mut runner = Runner::start(command, &target).map_err(broken)?;
    let numbers = (0..all.len()).take_while(|_| !interrupted());
    let reached = runner.run(&mut witness, numbers, |_| BTreeSet::new()).map_err(broken)?;
    drop(runner);
    if interrupted() {
        return Err(RoadsError::Interrupted);
    }
    witness.prove_awake()?;
    let mut findings = grade(&all, &reached, features);
    if !witness.sniffs() {
        findings.push(Finding::cannot(
            "packets",
            "only listeners watched, not the wire",
            "what leaves the host without a listener on it was not seen",
            "the right to look: run it with sudo",
        ));
    }
    for finding in &mut findings {
        finding.workload = Some(workload.clone());
    }
    Ok(findings)
}

/// One finding for each road.
pub(super) fn grade(all: &[Attempt], reached: &BTreeSet<usize>, features: Features) -> Vec<Finding> {
    let mut by_road: BTreeMap<Road, (usize, Vec<&Attempt>)> = BTreeMap::new();
    for (number, attempt) in all.iter().enumerate() {
        let (tried, through) = by_road.entry(attempt.road).or_default();
        *tried += 1;
        if reached.contains(&number) {
            through.push(attempt);
        }
    }
    let mut findings = Vec::new();
    for (road, (tried, through)) in by_road {
        let (title, means, fix) = words(road);
        let mut finding = Finding::closed(title, format!("tried {tried}, reached {}", through.len()));
        finding.attempts = Some(tried);
        finding.reached = through.iter().map(|attempt| attempt.name.clone()).collect();
        if !through.is_empty() {
            let lacking: Vec<Option<&'static str>> = through.iter().map(|a| lacks(a, features)).collect();
            // Open if there is anything that this kernel could close.
            let (grade, fix) = match lacking.iter().copied().collect::<Option<Vec<_>>>() {
                Some(lacking) => (Grade::Cannot, lacking.first().copied().unwrap_or(fix)),
                None => (Grade::Open, fix),
            };
            (finding.grade, finding.means, finding.fix) = (grade, Some(means.into()), Some(fix.into()));
        }
        findings.push(finding);
    }
    findings
}

/// What the kernel would have to have, where nothing else closes this.
fn lacks(attempt: &Attempt, features: Features) -> Option<&'static str> {
    let by_unix = attempt.road == Road::Unix || attempt.name.starts_with("socket given");
    if by_unix && features.unix_hooks == Some(false) {
        return Some(LACKS_UNIX);
    }
    if attempt.name.ends_with(attempts::PASSED) && features.lsm == Some(false) {
        return Some(LACKS_LSM);
    }
    let by_signal = attempt.name == attempts::SIGNAL;
    (by_signal && features.landlock < LANDLOCK_SCOPES).then_some("Landlock version 6 (Linux 6.12)")
}

/// A road's name, what it means if it is open, and what closes it.
fn words(road: Road) -> (&'static str, &'static str, &'static str) {
    const HOOKS: &str =
        "restart the daemon, so that it attaches its hooks again (`portcullis status` names what is missing)";
    const LAUNCHER: &str = "start it with `portcullis run`, and for units take the drop-in of deploy/";
    match road {
        Road::Tcp => ("TCP", "the agent connects past the enforcer: nothing judges, masks or records it", HOOKS),
        Road::Datagrams => ("UDP, ICMP, raw", "the agent sends datagrams that nobody judges: also DNS and QUIC", HOOKS),
        Road::Listening => ("listening", "others connect to the agent, and carry out what it has", HOOKS),
        Road::Unix => ("unix sockets", "the agent reaches local daemons: databases, D-Bus, docker.sock, tmux", HOOKS),
        Road::Families => ("other families", "the agent has sockets that no hook sees", LAUNCHER),
        Road::Passed => (
            "passed sockets",
            "the agent uses sockets of others, which no hook sees",
            "start it with `portcullis run`; where unix sockets are open, too, restart the daemon",
        ),
        Road::Processes => ("other processes", "the agent makes a process outside act for it", LAUNCHER),
        Road::Daemon => (
            "the daemon",
            "the agent approves its own commands, takes the enforcer's place, or takes its hooks away",
            "give the control socket to root and reviewers alone (mode 0660), the pins to root (mode 0700)",
        ),
        Road::Cgroups => (
            "cgroups",
            "the agent leaves its cgroup, and with it every hook",
            "do not delegate the workload's cgroup: it must belong to root",
        ),
        Road::Namespaces => ("namespaces", "the agent gets capabilities or a network of its own", LAUNCHER),
        Road::Kernel => ("kernel interfaces", "the agent undoes hooks, or has the kernel act for it", LAUNCHER),
        Road::Privileges => ("privileges", "the agent becomes another user", LAUNCHER),
    }
}

/// An address of this host that is not loopback, for each family, and the device of the first; loopback's where there is
/// none.
pub fn aim() -> Aim {
    let mut aim = Aim { v4: Ipv4Addr::LOCALHOST, v6: Ipv6Addr::LOCALHOST, device: "lo".into(), at: Whose::ThisHost };
    for found in getifaddrs().into_iter().flatten() {
        let Some(address) = found.address else { continue };
        if let Some(v4) = address.as_sockaddr_in().map(nix::sys::socket::SockaddrIn::ip)
            && aim.v4.is_loopback()
            && !v4.is_loopback()
            && !v4.is_link_local()
        {
            (aim.v4, aim.device) = (v4, found.interface_name.clone());
        }
        if let Some(v6) = address.as_sockaddr_in6().map(nix::sys::socket::SockaddrIn6::ip)
            && aim.v6.is_loopback()
            && !v6.is_loopback()
            && !v6.is_unicast_link_local()
        {
            aim.v6 = v6;
        }
    }
    aim
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graded(names: &[&str], features: Features) -> Vec<Finding> {
        let all = attempts::all();
        let reached = (0..all.len()).filter(|number| names.contains(&&*all[*number].name)).collect();
        grade(&all, &reached, features)
    }

    fn road<'a>(findings: &'a [Finding], check: &str) -> Option<&'a Finding> {
        findings.iter().find(|finding| finding.check == check)
    }

    #[test]
    fn what_the_kernel_lacks_is_named_and_not_called_open() {
        let old = Features { landlock: 3, unix_hooks: Some(false), lsm: Some(false) };
        let new = Features { landlock: 7, unix_hooks: Some(true), lsm: Some(true) };
        let passed = format!("udp socket{}", attempts::PASSED);
        let findings = graded(&["unix path stream", attempts::SIGNAL, &passed], old);
        for (check, lacks) in
            [("unix sockets", "Linux 6.7"), ("other processes", "Linux 6.12"), ("passed sockets", "lsm=")]
        {
            let found = road(&findings, check);
            assert_eq!(found.map(|finding| finding.grade), Some(Grade::Cannot), "{found:?}");
            assert!(found.and_then(|finding| finding.fix.as_deref()).is_some_and(|fix| fix.contains(lacks)));
            assert_eq!(found.map(|finding| finding.reached.len()), Some(1));
        }
        assert!(findings.iter().filter(|finding| finding.grade == Grade::Closed).count() > 8);
        // The same on a kernel that could, and beside something that this one could.
        for findings in [
            graded(&["unix path stream"], new),
            graded(&[&passed], new),
            graded(&["ptrace attach", attempts::SIGNAL], old),
        ] {
            assert_eq!(findings.iter().filter(|finding| finding.grade == Grade::Open).count(), 1, "{findings:?}");
        }
        assert!(graded(&[], old).iter().all(|finding| finding.grade == Grade::Closed));
    }

    #[test]
    fn every_road_has_attempts_and_every_attempt_a_name_of_its_own() {
        let all = attempts::all();
        let names: BTreeSet<&str> = all.iter().map(|attempt| &*attempt.name).collect();
        assert_eq!(names.len(), all.len());
        assert_eq!(graded(&[], Features { landlock: 0, unix_hooks: None, lsm: None }).len(), 12);
    }
}
