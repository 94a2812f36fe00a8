use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use super::*;
use crate::{
    action::{ProcessFacts, Target, Verb},
    policy::{HoldScope, HoldSpec, Reason, Reviewer},
};

const MINUTE: Duration = Duration::from_secs(60);

fn spec() -> HoldSpec {
    HoldSpec {
        reason: Reason { rule: "writes wait".into(), text: "Writes need a reviewer".into() },
        reviewers: Arc::new([Reviewer::Group("dba".into())]),
        required: 1,
        expires: 15 * MINUTE,
        scope: HoldScope::Command,
        dry_run: false,
    }
}

fn request(session: &str, command: &str) -> HoldRequest {
    HoldRequest {
        workload: "bot".into(),
        session: session.into(),
        connection_id: 1,
        seq: 1,
        process: ProcessFacts { pid: 10, uid: 1000, comm: "psql".into(), exe: None },
        intent: None,
        turns: Vec::new(),
        upstream: "orders".into(),
        database: Some("shop".into()),
        command: command.into(),
        hash: *blake3::hash(command.as_bytes()).as_bytes(),
        action: vec![(Verb::Write, Target::new("public.orders"))],
        spec: spec(),
        shape: "UPDATE orders SET a = ?".into(),
    }
}

fn person(name: &str, uid: u32) -> ReviewerIdentity {
    ReviewerIdentity { name: name.into(), uid, groups: vec!["dba".into()] }
}

fn bob() -> ReviewerIdentity {
    person("bob", 2000)
}

fn store() -> HoldStore {
    HoldStore::new(HoldSettings::default())
}

fn approved(by: &str) -> Outcome {
    Outcome::Approved { reviewers: vec![by.into()], reason: None }
}

#[tokio::test(start_paused = true)]
async fn approve_and_deny_reach_the_one_who_waits() {
    let store = store();
    let mut first = store.request(request("s", "a")).unwrap();
    let mut second = store.request(request("s", "b")).unwrap();
    let listed = store.list();
    assert_eq!(listed.iter().map(|v| v.id.clone()).collect::<Vec<_>>(), [first.id().clone(), second.id().clone()]);
    assert_eq!(listed[0].state, HoldState::Requested);
    assert_eq!(&*listed[0].command, "a");
    let estimate = Estimate { rows: Some(3), note: "by the planner".into(), counted: false, sample: None };
    store.set_estimate(first.id(), estimate);
    assert_eq!(store.view(first.id()).unwrap().estimate.unwrap().rows, Some(3));
    tokio::time::advance(10 * MINUTE).await;
    let typed = format!(" {} ", first.id().to_uppercase().replace('0', "O").replace('1', "l"));
    assert!(matches!(store.approve(&typed, &bob(), None, None).unwrap(), Approval::Granted(_, None)));
    store.deny(second.id(), &bob(), Some("no".into())).unwrap();
    assert_eq!(first.outcome().await, approved("bob"));
    assert_eq!(second.outcome().await, Outcome::Denied { reviewer: "bob".into(), reason: Some("no".into()) });
    assert!(store.list().is_empty());
    for id in [first.id(), second.id()] {
        assert!(matches!(store.approve(id, &bob(), None, None), Err(HoldError::Decided { .. })));
        assert!(matches!(store.deny(id, &bob(), None), Err(HoldError::Decided { .. })));
    }
    assert!(matches!(store.approve("zzzzz", &bob(), None, None), Err(HoldError::Unknown(_))));
    assert_eq!(first.outcome().await, Outcome::Revoked, "an outcome is handed out once");
    drop((first, second));
    assert!(store.grants().is_empty(), "what was handed out leaves no permit behind");
}

#[tokio::test(start_paused = true)]
async fn nobody_answers() {
    let store = store();
    let mut pending = store.request(request("s", "a")).unwrap();
    let begun = tokio::time::Instant::now();
    assert_eq!(pending.outcome().await, Outcome::Expired);
    assert_eq!(begun.elapsed(), 15 * MINUTE);
    assert!(matches!(
        store.approve(pending.id(), &bob(), None, None),
        Err(HoldError::Decided { state: HoldState::Expired, .. })
    ));
    assert!(store.grants().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_overdue_hold_cannot_be_approved_though_nobody_polled_it() {
    let store = store();
    let mut pending = store.request(request("s", "a")).unwrap();
    tokio::time::advance(15 * MINUTE).await;
    assert!(store.approve(pending.id(), &bob(), None, None).is_err());
    assert_eq!(pending.outcome().await, Outcome::Expired);
}

#[tokio::test(start_paused = true)]
async fn the_timer_expires_what_nobody_asks_about() {
    let store = store();
    let mut changes = store.changes();
    let timer = tokio::spawn({
        let store = store.clone();
        async move { store.run_timer().await }
    });
    tokio::task::yield_now().await;
    let pending = store.request(request("s", "a")).unwrap();
    let id = pending.id().clone();
    drop(pending);
    for expected in [HoldState::Requested, HoldState::Withdrawn, HoldState::Expired] {
        let HoldChange::Hold { view, .. } = changes.recv().await.unwrap() else { panic!() };
        assert_eq!((&view.id, view.state), (&id, expected));
    }
    timer.abort();
}

#[tokio::test]
async fn only_whom_the_rule_asks() {
    let store =
        HoldStore::new(HoldSettings { reviewers: vec![Reviewer::User("carol".into())], ..HoldSettings::default() });
    let outsider = ReviewerIdentity { name: "mallory".into(), uid: 3000, groups: vec!["users".into(), "db".into()] };
    let root = ReviewerIdentity { name: "root".into(), uid: 0, groups: vec!["root".into()] };
    let carol = ReviewerIdentity { name: "carol".into(), uid: 2001, groups: vec![] };
    let pending = store.request(request("s", "a")).unwrap();
    for who in [&outsider, &root, &carol] {
        assert!(matches!(store.approve(pending.id(), who, None, None), Err(HoldError::NotReviewer { .. })), "{who:?}");
        assert!(matches!(store.deny(pending.id(), who, None), Err(HoldError::NotReviewer { .. })), "{who:?}");
    }
    // A name is not a group, and a group is not a name.
    let dba = ReviewerIdentity { name: "dba".into(), uid: 2002, groups: vec![] };
    assert!(store.approve(pending.id(), &dba, None, None).is_err());
    assert_eq!(store.list()[0].state, HoldState::Requested);
    // A rule that names nobody asks the daemon's reviewers and root.
    let open = || HoldRequest { spec: HoldSpec { reviewers: Arc::new([]), ..spec() }, ..request("s", "b") };
    for who in [&root, &carol] {
        let pending = store.request(open()).unwrap();
        assert!(store.approve(pending.id(), who, None, None).is_ok(), "{who:?}");
    }
    let pending = store.request(open()).unwrap();
    assert!(store.approve(pending.id(), &outsider, None, None).is_err());
    assert!(store.approve(pending.id(), &bob(), None, None).is_err());
}

#[tokio::test]
async fn nobody_decides_for_a_process_of_their_own() {
    let own = person("alice", 1000);
    let refusing = store();
    let pending = refusing.request(request("s", "a")).unwrap();
    assert!(matches!(refusing.approve(pending.id(), &own, None, None), Err(HoldError::SameUser(_))));
    let permitting = HoldStore::new(HoldSettings { same_user: SameUser::Permit, ..HoldSettings::default() });
    let pending = permitting.request(request("s", "a")).unwrap();
    assert!(permitting.approve(pending.id(), &own, None, None).is_ok());
}

#[tokio::test]
async fn two_means_two_people() {
    let store = store();
    let two = |command: &str| HoldRequest { spec: HoldSpec { required: 2, ..spec() }, ..request("s", command) };
    let mut pending = store.request(two("a")).unwrap();
    assert!(matches!(store.approve(pending.id(), &bob(), None, Some(MINUTE)).unwrap(), Approval::Partial(_)));
    assert_eq!(store.list()[0].state, HoldState::Approved);
    for again in [bob(), person("bobby", 2000), person("bob", 2001)] {
        let refused = store.approve(pending.id(), &again, None, None);
        assert!(matches!(refused, Err(HoldError::SecondReviewer(_))), "{again:?}");
    }
    let Approval::Granted(view, grant) = store.approve(pending.id(), &person("carol", 2002), None, None).unwrap()
    else {
        panic!()
    };
    assert_eq!(view.approvals.len(), 2);
    assert!(grant.is_none(), "one of them wanted no grant");
    let reviewers = vec!["bob".into(), "carol".into()];
    assert_eq!(pending.outcome().await, Outcome::Approved { reviewers, reason: None });
    // Both wanted one: the shorter.
    let pending = store.request(two("b")).unwrap();
    store.approve(pending.id(), &bob(), None, Some(5 * MINUTE)).unwrap();
    let granted = store.approve(pending.id(), &person("carol", 2002), None, Some(MINUTE)).unwrap();
    let Approval::Granted(_, Some(grant)) = granted else { panic!() };
    let length = grant.expires_at.unwrap().duration_since(grant.granted_at);
    assert_eq!(length.as_secs(), 60);
    // One approval does not survive a denial, nor does it count for a retry alone.
    let pending = store.request(two("c")).unwrap();
    let id = pending.id().clone();
    store.approve(&id, &bob(), None, None).unwrap();
    drop(pending);
    assert!(store.covered(&two("c").as_command()).is_some(), "by the grant for this shape");
    store.revoke(&grant.id, &bob()).unwrap();
    assert!(store.covered(&two("c").as_command()).is_none());
    assert!(matches!(store.approve(&id, &bob(), None, None), Err(HoldError::SecondReviewer(_))));
    assert!(matches!(store.approve(&id, &person("carol", 2002), None, None).unwrap(), Approval::Retry(..)));
    assert!(store.covered(&two("c").as_command()).is_some());
    for required in [0, 3] {
        let impossible = HoldRequest { spec: HoldSpec { required, ..spec() }, ..request("s", "d") };
        assert!(matches!(store.request(impossible), Err(HoldError::Required(_))));
    }
}

#[tokio::test(start_paused = true)]
async fn a_retry_permit_is_for_the_same_bytes_once() {
    let store = store();
    let pending = store.request(request("s", "a")).unwrap();
    let id = pending.id().clone();
    drop(pending);
    assert_eq!(store.list()[0].state, HoldState::Withdrawn);
    assert!(store.covered(&request("s", "a").as_command()).is_none());
    assert!(matches!(store.approve(&id, &bob(), None, Some(MINUTE)).unwrap(), Approval::Retry(..)));
    let others = [
        HoldRequest { workload: "other".into(), ..request("s", "a") },
        HoldRequest { upstream: "other".into(), ..request("s", "a") },
        HoldRequest { database: None, ..request("s", "a") },
        request("s", "a "),
        HoldRequest { spec: HoldSpec { required: 2, ..spec() }, ..request("s", "a") },
        HoldRequest { spec: HoldSpec { reviewers: Arc::new([]), ..spec() }, ..request("s", "a") },
        HoldRequest {
            spec: HoldSpec { reason: Reason { rule: "stricter".into(), text: "".into() }, ..spec() },
            ..request("s", "a")
        },
    ];
    for other in &others {
        assert!(store.covered(&other.as_command()).is_none(), "{other:?}");
    }
    store.end_session("s");
    let retry = HoldRequest { connection_id: 9, ..request("a later session", "a") };
    let covered = store.covered(&retry.as_command()).unwrap();
    assert_eq!((covered.id, covered.reviewers), (id, vec!["bob".to_owned()]));
    assert!(store.covered(&retry.as_command()).is_none(), "once");

    // It lasts ten minutes.
    let pending = store.request(request("s", "b")).unwrap();
    let id = pending.id().clone();
    drop(pending);
    store.approve(&id, &bob(), None, None).unwrap();
    tokio::time::advance(10 * MINUTE).await;
    assert!(store.covered(&request("s", "b").as_command()).is_none());
    // Quarantine takes it.
    let pending = store.request(request("s", "c")).unwrap();
    let id = pending.id().clone();
    drop(pending);
    store.approve(&id, &bob(), None, None).unwrap();
    store.quarantine_session("s");
    assert!(store.covered(&request("s", "c").as_command()).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_grant_is_for_one_shape_in_one_session_for_a_while() {
    let store = store();
    let mut pending = store.request(request("s", "a")).unwrap();
    assert!(matches!(store.approve(pending.id(), &bob(), None, Some(Duration::ZERO)), Err(HoldError::GrantTooShort)));
    let day = Duration::from_secs(86_400);
    assert!(matches!(store.approve(pending.id(), &bob(), None, Some(day)), Err(HoldError::GrantTooLong(_))));
    let Approval::Granted(_, Some(grant)) = store.approve(pending.id(), &bob(), None, Some(30 * MINUTE)).unwrap()
    else {
        panic!()
    };
    assert_eq!(pending.outcome().await, approved("bob"));
    let same_shape = HoldRequest { connection_id: 7, ..request("s", "other literals") };
    assert!(store.covered(&same_shape.as_command()).is_some());
    assert!(store.covered(&same_shape.as_command()).is_some(), "more than once");
    for other in [
        request("another session", "other literals"),
        HoldRequest { shape: "DELETE FROM orders".into(), ..same_shape.clone() },
        HoldRequest { upstream: "x".into(), ..same_shape.clone() },
        HoldRequest { database: Some("x".into()), ..same_shape.clone() },
        HoldRequest { spec: HoldSpec { required: 2, ..spec() }, ..same_shape.clone() },
    ] {
        assert!(store.covered(&other.as_command()).is_none(), "{other:?}");
    }
    let views = store.grants();
    assert_eq!((views.len(), views[0].uses), (1, 2));
    let outsider = ReviewerIdentity { name: "mallory".into(), uid: 3000, groups: vec![] };
    assert!(matches!(store.revoke(&grant.id, &outsider), Err(HoldError::NotReviewer { .. })));
    tokio::time::advance(30 * MINUTE).await;
    assert!(store.covered(&same_shape.as_command()).is_none());
    assert!(store.grants().is_empty());

    let pending = store.request(request("s", "a")).unwrap();
    store.approve(pending.id(), &bob(), None, Some(MINUTE)).unwrap();
    store.covered(&same_shape.as_command()).unwrap();
    let revoked = store.revoke(pending.id(), &bob()).unwrap();
    assert_eq!(revoked.connections.into_iter().collect::<Vec<_>>(), [7], "to be closed");
    assert!(store.covered(&same_shape.as_command()).is_none());
    assert!(matches!(store.revoke(pending.id(), &bob()), Err(HoldError::Unknown(_))));
}

#[tokio::test(start_paused = true)]
async fn one_approval_for_the_reads_of_a_session() {
    let reads = |session: &str, command: &str| HoldRequest {
        action: vec![(Verb::Read, Target::new("public.orders"))],
        spec: HoldSpec { scope: HoldScope::SessionReads, ..spec() },
        shape: command.into(),
        ..request(session, command)
    };
    let store = store();
    let pending = store.request(reads("s", "select 1")).unwrap();
    assert!(matches!(store.approve(pending.id(), &bob(), None, None).unwrap(), Approval::Granted(_, Some(_))));
    tokio::time::advance(24 * 60 * MINUTE).await;
    assert!(store.covered(&reads("s", "select 2").as_command()).is_some());
    assert!(store.covered(&reads("t", "select 2").as_command()).is_none());
    let mut mixed = reads("s", "select 3");
    mixed.action.push((Verb::Write, Target::new("public.orders")));
    assert!(store.covered(&mixed.as_command()).is_none(), "a change hides behind a read");
    let mut unknown = reads("s", "select 4");
    unknown.action = vec![(Verb::Unknown, Target::new("x"))];
    assert!(store.covered(&unknown.as_command()).is_none());
    let single = HoldRequest { spec: spec(), ..reads("s", "select 5") };
    assert!(store.covered(&single.as_command()).is_none(), "a rule that asks each time is asked each time");
    store.end_session("s");
    assert!(store.covered(&reads("s", "select 2").as_command()).is_none());
}

#[tokio::test(start_paused = true)]
async fn ending_a_session_answers_those_who_wait() {
    let store = store();
    let mut waiting = store.request(request("s", "a")).unwrap();
    let mut other = store.request(request("t", "a")).unwrap();
    drop(store.request(request("s", "abandoned")).unwrap());
    store.end_session("s");
    assert_eq!(waiting.outcome().await, Outcome::Revoked);
    assert_eq!(store.list().iter().filter(|v| v.state == HoldState::Withdrawn).count(), 1, "may be retried");
    store.quarantine_session("s");
    assert_eq!(store.list().len(), 1);
    store.approve(other.id(), &bob(), None, None).unwrap();
    assert_eq!(other.outcome().await, approved("bob"));
}

#[tokio::test]
async fn waiting_is_bounded() {
    let store =
        HoldStore::new(HoldSettings { max_per_session: 3, max_total: 5, max_bytes: 100, ..HoldSettings::default() });
    let held: Vec<_> = (0..3).map(|n| store.request(request("s", &n.to_string())).unwrap()).collect();
    assert!(matches!(store.request(request("s", "3")), Err(HoldError::TooMany(_))));
    let _other: Vec<_> = (0..2).map(|n| store.request(request("t", &n.to_string())).unwrap()).collect();
    assert!(matches!(store.request(request("u", "0")), Err(HoldError::TooMany(_))));
    drop(held);
    // Those who ask and go away make room with their own, not with others'.
    for n in 10..40 {
        drop(store.request(request("s", &n.to_string())).unwrap());
        assert!(store.list().len() <= 5);
    }
    assert_eq!(store.list().iter().filter(|v| &*v.session == "t").count(), 2);
    assert!(matches!(store.request(request("s", &"x".repeat(200))), Err(HoldError::TooMany(_))));
    // The same command again takes the place of the one that was abandoned.
    store.quarantine_session("s");
    for _ in 0..4 {
        drop(store.request(request("s", "same")).unwrap());
    }
    assert_eq!(store.list().iter().filter(|v| &*v.session == "s").count(), 1);
}

#[derive(Default)]
struct Notes {
    broken: AtomicBool,
    states: Mutex<Vec<String>>,
}

impl Journal for Notes {
    fn note(&self, change: &HoldChange) -> Result<(), JournalError> {
        if self.broken.load(Ordering::SeqCst) {
            return Err(JournalError("disk full".into()));
        }
        let text = match change {
            HoldChange::Hold { view, by, .. } => format!("{} {by:?}", view.state.as_str()),
            HoldChange::Estimated { .. } => "estimated".into(),
            HoldChange::Grant { state, .. } => format!("grant {state:?}"),
        };
        self.states.lock().unwrap().push(text);
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_recorded_does_not_happen() {
    let notes = Arc::new(Notes::default());
    let store = HoldStore::with_journal(HoldSettings::default(), notes.clone());
    let mut pending = store.request(request("s", "a")).unwrap();
    notes.broken.store(true, Ordering::SeqCst);
    assert!(matches!(store.request(request("s", "b")), Err(HoldError::Unrecorded(_))));
    assert!(matches!(store.approve(pending.id(), &bob(), None, None), Err(HoldError::Unrecorded(_))));
    assert_eq!(store.list().len(), 1);
    assert!(store.list()[0].approvals.is_empty(), "not even half");
    notes.broken.store(false, Ordering::SeqCst);
    store.approve(pending.id(), &bob(), None, None).unwrap();
    assert_eq!(pending.outcome().await, approved("bob"));
    // A permit whose use cannot be recorded lets nothing pass, and is gone.
    let second = store.request(request("s", "b")).unwrap();
    let id = second.id().clone();
    drop(second);
    store.approve(&id, &bob(), None, None).unwrap();
    notes.broken.store(true, Ordering::SeqCst);
    assert!(store.covered(&request("s", "b").as_command()).is_none());
    notes.broken.store(false, Ordering::SeqCst);
    assert!(store.covered(&request("s", "b").as_command()).is_none());
    // Refusing works whatever the disk says.
    let mut third = store.request(request("s", "c")).unwrap();
    notes.broken.store(true, Ordering::SeqCst);
    store.deny(third.id(), &bob(), None).unwrap();
    assert!(matches!(third.outcome().await, Outcome::Denied { .. }));
    let states = notes.states.lock().unwrap();
    let by = "Some(\"bob\")";
    let expected = [
        "requested None".to_owned(),
        format!("granted {by}"),
        "requested None".into(),
        "withdrawn None".into(),
        format!("granted {by}"),
        "grant Opened".into(),
        "requested None".into(),
    ];
    assert_eq!(*states, expected);
}

#[tokio::test(start_paused = true)]
async fn an_approval_that_meets_a_leaving_client_becomes_a_retry() {
    let store = store();
    let mut pending = store.request(request("s", "a")).unwrap();
    // Polled, then cancelled: nothing is lost.
    tokio::select! {
        biased;
        _ = pending.outcome() => panic!("nobody decided"),
        () = std::future::ready(()) => {}
    }
    assert!(matches!(store.approve(pending.id(), &bob(), None, None).unwrap(), Approval::Granted(..)));
    drop(pending);
    assert!(store.covered(&request("s", "a").as_command()).is_some());
    assert!(store.covered(&request("s", "a").as_command()).is_none());
}

/// Reviewers, the clock and the client race for each hold; whatever wins, it wins alone, and a command passes at most
/// once for one approval.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn each_hold_is_decided_once() {
    let notes = Arc::new(Notes::default());
    let settings = HoldSettings { max_per_session: 10_000, max_total: 10_000, ..HoldSettings::default() };
    let store = HoldStore::with_journal(settings, notes.clone());
    let mut kinds = [0; 4];
    for round in 0..400 {
        let command = format!("c{round}");
        // Some expire at once, so that the clock takes part.
        let expires = if round % 3 == 0 { Duration::from_micros(50) } else { MINUTE };
        let this = HoldRequest { spec: HoldSpec { expires, ..spec() }, ..request("s", &command) };
        let mut pending = store.request(this.clone()).unwrap();
        let id = pending.id().clone();
        let start = Arc::new(tokio::sync::Barrier::new(6));
        let reviewers: Vec<_> = (0..4)
            .map(|n| {
                let (store, id, start) = (store.clone(), id.clone(), start.clone());
                tokio::spawn(async move {
                    start.wait().await;
                    let who = person(&format!("r{n}"), 5000 + n);
                    match n % 2 {
                        0 => store.approve(&id, &who, None, None).is_ok(),
                        _ => store.deny(&id, &who, None).is_ok(),
                    }
                })
            })
            .collect();
        let client = tokio::spawn({
            let start = start.clone();
            async move {
                start.wait().await;
                if round % 2 == 0 { Some(pending.outcome().await) } else { None }
            }
        });
        start.wait().await;
        let mut decided = Vec::new();
        for reviewer in reviewers {
            decided.push(reviewer.await.unwrap());
        }
        let outcome = client.await.unwrap();
        let deciders = decided.iter().filter(|won| **won).count();
        let approvals = decided[0] || decided[2];
        let retry = store.covered(&this.as_command()).is_some();
        assert!(store.covered(&this.as_command()).is_none());
        match outcome {
            Some(Outcome::Approved { .. }) => {
                kinds[0] += 1;
                assert!(approvals && deciders == 1 && !retry, "{decided:?}");
            }
            Some(Outcome::Denied { .. }) => {
                kinds[1] += 1;
                assert!(!approvals && deciders == 1 && !retry, "{decided:?}");
            }
            Some(Outcome::Expired) => {
                kinds[2] += 1;
                assert!(deciders == 0 && !retry, "{decided:?}");
            }
            Some(Outcome::Revoked) => panic!("nobody revoked"),
            None => {
                kinds[3] += 1;
                assert!(deciders <= 1, "{decided:?}");
                assert_eq!(retry, approvals, "an approval that was not handed out is a retry, once");
            }
        }
    }
    assert!(kinds.iter().sum::<usize>() == 400 && kinds[0] + kinds[1] > 0 && kinds[3] == 200, "{kinds:?}");
    assert!(store.list().is_empty());
    let states = notes.states.lock().unwrap();
    let ends = states.iter().filter(|s| ["granted", "denied", "expired"].iter().any(|e| s.starts_with(e))).count();
    assert_eq!(ends, 400, "one end on the record for each");
}

#[test]
fn ids_are_typeable_and_differ() {
    assert_eq!(id::normalise(" O1Il-x "), "0111-x");
    assert_eq!(id::normalise(&"a".repeat(1000)).len(), 32);
    let ids: std::collections::HashSet<_> = (0..100).map(|_| id::random(4).unwrap()).collect();
    assert!(ids.len() > 90);
    assert!(ids.iter().all(|id| id.len() == 4 && id::normalise(id) == *id));
}
