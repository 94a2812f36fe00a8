use std::{collections::HashSet, fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use super::*;

fn new(cgroup_id: u64) -> NewSession {
    NewSession {
        workload: "support-bot".into(),
        intent: Some("answer ticket 7".into()),
        cgroup_id,
        cgroup_path: "/nowhere".into(),
        operator: "alice".into(),
        command: vec!["psql".into()],
        ..NewSession::default()
    }
}

fn in_dir(dir: &Path, ttl: Option<Duration>) -> NewSession {
    fs::create_dir_all(dir).unwrap();
    NewSession { cgroup_id: cgroup_id(dir).unwrap(), cgroup_path: dir.into(), ttl, ..new(0) }
}

#[test]
fn ids_sort_by_time_and_differ() {
    let mut seen = HashSet::new();
    for _ in 0..2000 {
        let id = new_session_id().unwrap();
        assert!(ids::is_session_id(&id), "{id}");
        assert!(seen.insert(id));
        assert!(ids::is_trace_id(&new_trace_id().unwrap()));
    }
    let first = new_session_id().unwrap();
    std::thread::sleep(Duration::from_millis(2));
    assert!(first < new_session_id().unwrap());
}

#[test]
fn ids_that_could_be_paths_are_refused() {
    let sessions = Sessions::in_memory();
    for bad in ["../../../../etc/passwd0000", "", "0000000000000000000000000", "0000000000000000000000000I"] {
        let refused = sessions.insert(NewSession { id: Some(bad.into()), ..new(1) });
        assert!(matches!(refused, Err(IdentityError::Malformed(..))), "{bad}");
    }
    for bad in ["", "00000000000000000000000000000000", "ABCDEF00000000000000000000000000", "abc"] {
        let refused = sessions.insert(NewSession { trace_id: Some(bad.into()), ..new(1) });
        assert!(matches!(refused, Err(IdentityError::Malformed(..))), "{bad}");
    }
    assert!(sessions.list().is_empty());
}

#[test]
fn a_cgroup_has_one_session() {
    let sessions = Sessions::in_memory();
    let a = sessions.insert(new(5)).unwrap();
    assert!(matches!(sessions.insert(new(5)), Err(IdentityError::CgroupTaken { .. })));
    let again = NewSession { id: Some(a.id.clone()), ..new(6) };
    assert!(matches!(sessions.insert(again), Err(IdentityError::IdTaken(_))));
    assert_eq!(sessions.by_cgroup(5).unwrap().id, a.id);
    assert!(sessions.by_cgroup(6).is_none());

    assert!(!a.ended.is_cancelled());
    assert_eq!(sessions.end(&a.id, EndReason::Exited).unwrap().end_reason(), Some(EndReason::Exited));
    assert!(sessions.end(&a.id, EndReason::Quarantined).is_none(), "ended once");
    assert_eq!(a.end_reason(), Some(EndReason::Exited));
    assert!(a.ended.is_cancelled());
    assert!(sessions.by_cgroup(5).is_none() && sessions.get(&a.id).is_none());
    sessions.insert(new(5)).unwrap();
}

#[tokio::test(start_paused = true)]
async fn time_runs_out_in_order() {
    let sessions = Sessions::in_memory();
    let long = sessions.insert(NewSession { ttl: Some(Duration::from_secs(7200)), ..new(1) }).unwrap();
    let forever = sessions.insert(new(2)).unwrap();
    let waiter = tokio::spawn({
        let sessions = sessions.clone();
        async move { [sessions.next_expired().await.id.clone(), sessions.next_expired().await.id.clone()] }
    });
    tokio::task::yield_now().await;
    // Made while the waiter sleeps toward a later end.
    let short = sessions.insert(NewSession { ttl: Some(Duration::from_secs(60)), ..new(3) }).unwrap();
    let begun = tokio::time::Instant::now();
    assert_eq!(waiter.await.unwrap(), [short.id.clone(), long.id.clone()]);
    assert_eq!(begun.elapsed().as_secs(), 7200);
    assert_eq!(long.end_reason(), Some(EndReason::Expired));
    assert_eq!(sessions.list().len(), 1);
    assert!(sessions.get(&forever.id).is_some());
}

#[tokio::test(start_paused = true)]
async fn an_overdue_session_is_refused_before_it_is_ended() {
    let sessions = Sessions::in_memory();
    let one = sessions.insert(NewSession { ttl: Some(Duration::from_secs(60)), ..new(1) }).unwrap();
    assert!(sessions.by_cgroup(1).is_some());
    tokio::time::advance(Duration::from_secs(60)).await;
    assert!(sessions.by_cgroup(1).is_none());
    assert!(sessions.get(&one.id).is_none());
    assert!(one.end_reason().is_none());
}

#[test]
fn sessions_survive_a_restart_if_their_cgroup_does() {
    let state = tempfile::tempdir().unwrap();
    let (dir, groups) = (state.path().join("sessions"), state.path().join("groups"));
    let (sessions, restored) = Sessions::open(&dir).unwrap();
    assert!(restored.adopted.is_empty() && restored.lost.is_empty() && restored.unreadable.is_empty());
    assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);

    let kept = sessions.insert(in_dir(&groups.join("kept"), Some(Duration::from_secs(3600)))).unwrap();
    let gone = sessions.insert(in_dir(&groups.join("gone"), None)).unwrap();
    let over = sessions.insert(in_dir(&groups.join("over"), Some(Duration::ZERO))).unwrap();
    let ended = sessions.insert(in_dir(&groups.join("ended"), None)).unwrap();
    let other_boot = sessions.insert(in_dir(&groups.join("boot"), None)).unwrap();
    let path = dir.join(format!("{}.json", other_boot.id));
    let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    json["boot"] = "another".into();
    fs::write(&path, json.to_string()).unwrap();
    let file = dir.join(format!("{}.json", kept.id));
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    sessions.end(&ended.id, EndReason::Exited);
    drop(sessions);
    fs::remove_dir(groups.join("gone")).unwrap();
    fs::write(dir.join("torn.json"), b"{\"id\":").unwrap();
    fs::copy(&file, dir.join("01kzzzzzzzzzzzzzzzzzzzzzzz.json")).unwrap();
    fs::write(dir.join("x.new"), b"half").unwrap();

    let (sessions, restored) = Sessions::open(&dir).unwrap();
    assert_eq!(restored.adopted.len(), 1);
    let mut lost: Vec<_> = restored.lost.iter().map(|l| (l.id.clone(), l.why)).collect();
    let mut expected = vec![
        (gone.id.clone(), EndReason::Lost),
        (over.id.clone(), EndReason::Expired),
        (other_boot.id.clone(), EndReason::Lost),
    ];
    lost.sort_by(|a, b| a.0.cmp(&b.0));
    expected.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(lost, expected);
    assert_eq!(restored.unreadable.len(), 2, "{:?}", restored.unreadable);
    let back = sessions.by_cgroup(kept.cgroup_id).unwrap();
    assert_eq!((&back.id, &back.intent, &back.trace_id), (&kept.id, &kept.intent, &kept.trace_id));
    assert_eq!(back.ends_at, kept.ends_at, "a restart gives no more time");
    assert!(sessions.by_cgroup(gone.cgroup_id).is_none());

    // Lost ones are reported once.
    drop(sessions);
    let (_, restored) = Sessions::open(&dir).unwrap();
    assert!(restored.lost.is_empty());
    assert_eq!(restored.adopted.len(), 1);
}

#[test]
fn a_session_that_cannot_be_saved_is_none() {
    let state = tempfile::tempdir().unwrap();
    let dir = state.path().join("sessions");
    let (sessions, _) = Sessions::open(&dir).unwrap();
    fs::remove_dir(&dir).unwrap();
    assert!(matches!(sessions.insert(new(1)), Err(IdentityError::Io { .. })));
    assert!(sessions.by_cgroup(1).is_none());
}

#[test]
fn facts_of_this_process() {
    let me = process_facts(std::process::id());
    assert_eq!(me.pid, std::process::id());
    assert_eq!(me.uid, nix::unistd::geteuid().as_raw());
    assert_eq!(me.exe.as_deref(), std::env::current_exe().unwrap().to_str());
    assert!(!me.comm.is_empty() && !me.comm.ends_with('\n'));
    assert_eq!(process_facts(0), crate::action::ProcessFacts::default());
    assert_eq!(process_facts(u32::MAX).pid, 0, "no such process: nothing is claimed");
}

#[test]
fn a_cgroup_is_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("f");
    fs::write(&file, b"").unwrap();
    assert!(cgroup_id(&file).is_err());
    std::os::unix::fs::symlink(dir.path(), dir.path().join("link")).unwrap();
    assert!(cgroup_id(&dir.path().join("link")).is_err(), "a link may point anywhere tomorrow");
    assert!(cgroup_id(dir.path()).unwrap() > 0);
}
