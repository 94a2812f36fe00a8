//! What the store's lock guards. Every decision about a hold is one call here, so it is made once.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use tokio::{sync::oneshot, time::Instant};

use super::{Approval, Command, HoldError, HoldRequest, Inner, Outcome, Pending, SameUser};
use crate::{
    hold::{
        grants::{Covered, Grant, GrantScope, GrantView},
        id,
        reviewer::ReviewerIdentity,
        view::{ApprovalNote, Estimate, GrantState, HoldChange, HoldState, HoldView},
    },
    policy::{HoldScope, HoldSpec},
};

/// How many decided holds are remembered, to say how they ended and not to reuse their ids at once.
const REMEMBERED: usize = 512;

/// What becomes of an ended session's withdrawn holds and retry permits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Leftovers {
    Keep,
    Drop,
}

#[derive(Default)]
pub(super) struct State {
    holds: HashMap<Arc<str>, Entry>,
    grants: Vec<Grant>,
    decided: VecDeque<(Arc<str>, HoldState)>,
    bytes: usize,
}

struct Entry {
    request: Arc<HoldRequest>,
    approvals: Vec<Approver>,
    estimate: Option<Estimate>,
    requested_at: Timestamp,
    expires_at: Timestamp,
    deadline: Instant,
    /// `None`: the client went away.
    waiter: Option<oneshot::Sender<Outcome>>,
}

struct Approver {
    uid: u32,
    note: ApprovalNote,
    grant: Option<Duration>,
}

impl State {
    pub(super) fn request(
        &mut self,
        inner: &Inner,
        request: Arc<HoldRequest>,
        waiter: oneshot::Sender<Outcome>,
    ) -> Result<(Arc<str>, Instant), HoldError> {
        if !(1..=2).contains(&request.spec.required) {
            return Err(HoldError::Required(request.spec.required));
        }
        let now = Instant::now();
        self.expire(inner, now);
        self.forget_superseded(&request);
        self.make_room(inner, &request)?;
        let id = self.fresh_id()?;
        let requested_at = Timestamp::now();
        let entry = Entry {
            approvals: Vec::new(),
            estimate: None,
            requested_at,
            expires_at: later(requested_at, request.spec.expires),
            deadline: now.checked_add(request.spec.expires).unwrap_or(now),
            waiter: Some(waiter),
            request,
        };
        inner.note(entry.change(&id, HoldState::Requested, None, None))?;
        self.bytes += entry.request.command.len();
        let deadline = entry.deadline;
        self.holds.insert(id.clone(), entry);
        Ok((id, deadline))
    }

    /// The same bytes again, from the same session: the reviewer need not see the abandoned one beside them.
    fn forget_superseded(&mut self, request: &HoldRequest) {
        let same = |e: &Entry| {
            let r = &e.request;
            e.waiter.is_none()
                && r.hash == request.hash
                && r.session == request.session
                && r.upstream == request.upstream
                && r.database == request.database
        };
        let old: Vec<_> = self.holds.iter().filter(|(_, e)| same(e)).map(|(id, _)| id.clone()).collect();
        for id in old {
            self.take(&id, HoldState::Withdrawn);
        }
    }

    fn make_room(&mut self, inner: &Inner, request: &HoldRequest) -> Result<(), HoldError> {
        let limits = &inner.settings;
        let waiting =
            self.holds.values().filter(|e| e.waiter.is_some() && e.request.session == request.session).count();
        if waiting >= limits.max_per_session {
            return Err(HoldError::TooMany("in this session"));
        }
        let mut abandoned: Vec<_> = self
            .holds
            .iter()
            .filter(|(_, e)| e.waiter.is_none() && e.request.session == request.session)
            .map(|(id, e)| (e.deadline, id.clone()))
            .collect();
        abandoned.sort();
        // A session that asks and goes away over and over forgets its own oldest ones.
        let surplus = (abandoned.len() + 1).saturating_sub(limits.max_per_session);
        let mut abandoned = abandoned.into_iter();
        for (_, id) in abandoned.by_ref().take(surplus) {
            self.drop_abandoned(inner, &id);
        }
        let full = |state: &Self| {
            state.holds.len() >= limits.max_total
                || state.bytes.saturating_add(request.command.len()) > limits.max_bytes
        };
        while full(self) {
            let Some((_, id)) = abandoned.next() else { return Err(HoldError::TooMany("on this host")) };
            self.drop_abandoned(inner, &id);
        }
        Ok(())
    }

    fn drop_abandoned(&mut self, inner: &Inner, id: &Arc<str>) {
        if let Some(entry) = self.take(id, HoldState::Expired) {
            inner.note_anyway(entry.change(id, HoldState::Expired, None, Some("too many were abandoned".into())));
        }
    }

    fn fresh_id(&self) -> Result<Arc<str>, HoldError> {
        for attempt in 0..64 {
            let id = id::random(4 + attempt / 8).ok_or(HoldError::Random)?;
            let taken = self.holds.contains_key(id.as_str())
                || self.grants.iter().any(|g| *g.view.id == *id)
                || self.decided.iter().any(|(old, _)| **old == *id);
            if !taken {
                return Ok(id.into());
            }
        }
        Err(HoldError::Random)
    }

    pub(super) fn set_estimate(&mut self, inner: &Inner, id: &str, estimate: Estimate) {
        let Ok((id, entry)) = self.find(id) else { return };
        entry.estimate = Some(estimate);
        inner.note_anyway(HoldChange::Estimated { view: Arc::new(entry.view(&id, entry.standing())) });
    }

    pub(super) fn approve(
        &mut self,
        inner: &Inner,
        id: &str,
        by: &ReviewerIdentity,
        reason: Option<String>,
        grant: Option<Duration>,
    ) -> Result<Approval, HoldError> {
        let now = Instant::now();
        self.expire(inner, now);
        let (id, entry) = self.find(id)?;
        entry.check_reviewer(inner, by)?;
        match grant {
            Some(length) if length > inner.settings.max_grant => {
                return Err(HoldError::GrantTooLong(inner.settings.max_grant));
            }
            Some(Duration::ZERO) => return Err(HoldError::GrantTooShort),
            _ => {}
        }
        if entry.approvals.iter().any(|a| a.uid == by.uid || a.note.reviewer == by.name) {
            return Err(HoldError::SecondReviewer(by.name.clone()));
        }
        let note = ApprovalNote { reviewer: by.name.clone(), reason: reason.clone(), at: Timestamp::now() };
        entry.approvals.push(Approver { uid: by.uid, note, grant });
        let enough = entry.approvals.len() >= usize::from(entry.request.spec.required);
        let state = if enough { HoldState::Granted } else { HoldState::Approved };
        let view = Arc::new(entry.view(&id, state));
        let change = HoldChange::Hold { view: view.clone(), by: Some(by.name.clone()), reason: reason.clone() };
        if let Err(error) = inner.note(change) {
            entry.approvals.pop();
            return Err(error.into());
        }
        if !enough {
            return Ok(Approval::Partial(view));
        }
        let Some(mut entry) = self.take(&id, HoldState::Granted) else {
            return Err(HoldError::Unknown(id.to_string()));
        };
        let Some(waiter) = entry.waiter.take() else {
            let permit = self.open_grant(inner, &entry, &id, Reach::Retry, now);
            return Ok(Approval::Retry(view, permit));
        };
        let opened = entry.agreed_grant().map(|reach| self.open_grant(inner, &entry, &id, reach, now));
        // The receiver outlives its entry: it is dropped only after `withdraw`, which waits for this lock.
        let _ = waiter.send(Outcome::Approved { reviewers: entry.reviewers(), reason });
        Ok(Approval::Granted(view, opened))
    }

    pub(super) fn deny(
        &mut self,
        inner: &Inner,
        id: &str,
        by: &ReviewerIdentity,
        reason: Option<String>,
    ) -> Result<HoldView, HoldError> {
        self.expire(inner, Instant::now());
        let (id, entry) = self.find(id)?;
        entry.check_reviewer(inner, by)?;
        let view = entry.view(&id, HoldState::Denied);
        inner.note_anyway(entry.change(&id, HoldState::Denied, Some(by.name.clone()), reason.clone()));
        if let Some(waiter) = self.take(&id, HoldState::Denied).and_then(|e| e.waiter) {
            let _ = waiter.send(Outcome::Denied { reviewer: by.name.clone(), reason });
        }
        Ok(view)
    }

    /// Ends everything whose time has come.
    pub(super) fn expire(&mut self, inner: &Inner, now: Instant) {
        let mut due: Vec<_> =
            self.holds.iter().filter(|(_, e)| e.deadline <= now).map(|(id, e)| (e.deadline, id.clone())).collect();
        due.sort();
        for (_, id) in due {
            let Some(entry) = self.take(&id, HoldState::Expired) else { continue };
            inner.note_anyway(entry.change(&id, HoldState::Expired, None, None));
            if let Some(waiter) = entry.waiter {
                let _ = waiter.send(Outcome::Expired);
            }
        }
        self.end_grants(inner, GrantState::Expired, |grant| grant.is_over(now));
    }

    /// The one who waited is gone. If the hold was approved in that very moment, nothing was forwarded: the approval
    /// becomes a permit for a retry.
    pub(super) fn withdraw(&mut self, inner: &Inner, pending: &Pending, receiver: &mut oneshot::Receiver<Outcome>) {
        let id = &pending.id;
        if let Some(entry) = self.holds.get_mut(id) {
            entry.waiter = None;
            let change = entry.change(id, HoldState::Withdrawn, None, None);
            inner.note_anyway(change);
            return;
        }
        if let Ok(Outcome::Approved { reviewers, .. }) = receiver.try_recv() {
            let now = Instant::now();
            self.push_grant(inner, &pending.request, reviewers, id, Reach::Retry, now);
        }
    }

    pub(super) fn covered(&mut self, inner: &Inner, command: &Command<'_>) -> Option<Covered> {
        self.expire(inner, Instant::now());
        // A lasting grant first, so that a permit for a retry is not used up beside it.
        let covers = |g: &Grant, once: bool| g.covers(command) && once == g.hash.is_some();
        let found = self
            .grants
            .iter()
            .position(|g| covers(g, false))
            .or_else(|| self.grants.iter().position(|g| covers(g, true)))?;
        let grant = &mut self.grants[found];
        grant.view.uses += 1;
        grant.view.connections.insert(command.connection_id);
        let covered = grant.covered();
        if grant.hash.is_some() {
            let used = self.grants.remove(found);
            let change = HoldChange::Grant { view: Arc::new(used.view), state: GrantState::Used, by: None };
            inner.note(change).ok()?;
        }
        Some(covered)
    }

    pub(super) fn revoke(&mut self, inner: &Inner, id: &str, by: &ReviewerIdentity) -> Result<GrantView, HoldError> {
        self.expire(inner, Instant::now());
        let found = self.grants.iter().position(|g| *g.view.id == *id).ok_or_else(|| HoldError::Unknown(id.into()))?;
        let spec = &self.grants[found].spec;
        if !by.may_review(spec, &inner.settings.reviewers) && by.uid != 0 {
            return Err(not_reviewer(inner, by, spec));
        }
        let grant = self.grants.remove(found);
        inner.note_grant(grant.view.clone(), GrantState::Revoked, Some(by.name.clone()));
        Ok(grant.view)
    }

    pub(super) fn end_session(&mut self, inner: &Inner, session: &str, leftovers: Leftovers) {
        let of_session = |e: &Entry| *e.request.session == *session;
        let over = |e: &Entry| of_session(e) && (e.waiter.is_some() || leftovers == Leftovers::Drop);
        let ids: Vec<_> = self.holds.iter().filter(|(_, e)| over(e)).map(|(id, _)| id.clone()).collect();
        for id in ids {
            let Some(entry) = self.take(&id, HoldState::Revoked) else { continue };
            inner.note_anyway(entry.change(&id, HoldState::Revoked, None, None));
            if let Some(waiter) = entry.waiter {
                let _ = waiter.send(Outcome::Revoked);
            }
        }
        self.end_grants(inner, GrantState::SessionEnded, |grant| {
            *grant.view.session == *session && (grant.hash.is_none() || leftovers == Leftovers::Drop)
        });
    }

    pub(super) fn views(&self) -> Vec<HoldView> {
        let mut all: Vec<_> = self.holds.iter().map(|(id, e)| e.view(id, e.standing())).collect();
        all.sort_by(|a, b| (a.requested_at, &a.id).cmp(&(b.requested_at, &b.id)));
        all
    }

    pub(super) fn view(&self, id: &str) -> Option<HoldView> {
        self.holds.get_key_value(id).map(|(id, e)| e.view(id, e.standing()))
    }

    pub(super) fn grant_views(&self) -> Vec<GrantView> {
        self.grants.iter().map(|g| g.view.clone()).collect()
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.holds.values().map(|e| e.deadline).chain(self.grants.iter().filter_map(|g| g.deadline)).min()
    }

    fn find(&mut self, id: &str) -> Result<(Arc<str>, &mut Entry), HoldError> {
        let Some(key) = self.holds.get_key_value(id).map(|(key, _)| key.clone()) else {
            return Err(match self.decided.iter().rev().find(|(old, _)| **old == *id) {
                Some((id, state)) => HoldError::Decided { id: id.clone(), state: *state },
                None => HoldError::Unknown(id.into()),
            });
        };
        let entry = self.holds.get_mut(&key).ok_or_else(|| HoldError::Unknown(id.into()))?;
        Ok((key, entry))
    }

    /// Takes a hold out of the store: its outcome is decided by whoever got it.
    fn take(&mut self, id: &Arc<str>, state: HoldState) -> Option<Entry> {
        let entry = self.holds.remove(id)?;
        self.bytes = self.bytes.saturating_sub(entry.request.command.len());
        self.decided.push_back((id.clone(), state));
        if self.decided.len() > REMEMBERED {
            self.decided.pop_front();
        }
        Some(entry)
    }

    fn open_grant(
        &mut self,
        inner: &Inner,
        entry: &Entry,
        id: &Arc<str>,
        reach: Reach,
        now: Instant,
    ) -> Arc<GrantView> {
        self.push_grant(inner, &entry.request, entry.reviewers(), id, reach, now)
    }

    fn push_grant(
        &mut self,
        inner: &Inner,
        request: &HoldRequest,
        reviewers: Vec<String>,
        id: &Arc<str>,
        reach: Reach,
        now: Instant,
    ) -> Arc<GrantView> {
        let (scope, length, hash) = match reach {
            Reach::Shape(length) => (GrantScope::Shape { shape: request.shape.clone() }, Some(length), None),
            Reach::Reads => (GrantScope::SessionReads, None, None),
            Reach::Retry => {
                let hash = data_encoding::HEXLOWER.encode(&request.hash);
                (GrantScope::OneTime { hash }, Some(inner.settings.retry), Some(request.hash))
            }
        };
        let granted_at = Timestamp::now();
        let view = GrantView {
            id: id.clone(),
            workload: request.workload.clone(),
            session: request.session.clone(),
            upstream: request.upstream.clone(),
            database: request.database.clone(),
            scope,
            rule: request.spec.reason.rule.clone(),
            reviewers,
            granted_at,
            expires_at: length.map(|l| later(granted_at, l)),
            uses: 0,
            connections: BTreeSet::new(),
        };
        // The approval that opened it is on the record already.
        inner.note_grant(view.clone(), GrantState::Opened, None);
        let deadline = length.map(|l| now.checked_add(l).unwrap_or(now));
        self.grants.push(Grant { view: view.clone(), spec: request.spec.clone(), hash, deadline });
        Arc::new(view)
    }

    fn end_grants(&mut self, inner: &Inner, state: GrantState, over: impl Fn(&Grant) -> bool) {
        for grant in self.grants.extract_if(.., |grant| over(grant)) {
            inner.note_grant(grant.view, state, None);
        }
    }
}

/// What an approval opens.
#[derive(Clone, Copy)]
enum Reach {
    Shape(Duration),
    Reads,
    Retry,
}

impl Entry {
    fn standing(&self) -> HoldState {
        match (&self.waiter, self.approvals.is_empty()) {
            (None, _) => HoldState::Withdrawn,
            (Some(_), true) => HoldState::Requested,
            (Some(_), false) => HoldState::Approved,
        }
    }

    fn reviewers(&self) -> Vec<String> {
        self.approvals.iter().map(|a| a.note.reviewer.clone()).collect()
    }

    /// The grant that all approvals agree on; the rule's scope may open one of itself.
    fn agreed_grant(&self) -> Option<Reach> {
        match self.request.spec.scope {
            HoldScope::SessionReads => Some(Reach::Reads),
            HoldScope::Command => {
                let lengths: Option<Vec<_>> = self.approvals.iter().map(|a| a.grant).collect();
                lengths?.into_iter().min().map(Reach::Shape)
            }
        }
    }

    fn check_reviewer(&self, inner: &Inner, by: &ReviewerIdentity) -> Result<(), HoldError> {
        if !by.may_review(&self.request.spec, &inner.settings.reviewers) {
            return Err(not_reviewer(inner, by, &self.request.spec));
        }
        if inner.settings.same_user == SameUser::Refuse && by.runs(&self.request.process) {
            return Err(HoldError::SameUser(by.name.clone()));
        }
        Ok(())
    }

    fn change(&self, id: &Arc<str>, state: HoldState, by: Option<String>, reason: Option<String>) -> HoldChange {
        HoldChange::Hold { view: Arc::new(self.view(id, state)), by, reason }
    }

    fn view(&self, id: &Arc<str>, state: HoldState) -> HoldView {
        let r = &self.request;
        HoldView {
            id: id.clone(),
            state,
            workload: r.workload.clone(),
            session: r.session.clone(),
            connection_id: r.connection_id,
            seq: r.seq,
            process: r.process.clone(),
            intent: r.intent.clone(),
            turns: r.turns.clone(),
            upstream: r.upstream.clone(),
            database: r.database.clone(),
            command: r.command.clone(),
            hash: data_encoding::HEXLOWER.encode(&r.hash),
            action: r.action.clone(),
            rule: r.spec.reason.rule.clone(),
            reason: r.spec.reason.text.clone(),
            reviewers: r.spec.reviewers.iter().map(ToString::to_string).collect(),
            required: r.spec.required,
            approvals: self.approvals.iter().map(|a| a.note.clone()).collect(),
            estimate: self.estimate.clone(),
            requested_at: self.requested_at,
            expires_at: self.expires_at,
        }
    }
}

fn not_reviewer(inner: &Inner, by: &ReviewerIdentity, spec: &HoldSpec) -> HoldError {
    let named = if spec.reviewers.is_empty() { &inner.settings.reviewers[..] } else { &spec.reviewers[..] };
    let asked = if named.is_empty() {
        "root".to_owned()
    } else {
        named.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    };
    HoldError::NotReviewer { who: by.name.clone(), asked }
}

/// For display; a time beyond the calendar shows as the last one.
fn later(from: Timestamp, by: Duration) -> Timestamp {
    from.checked_add(by).unwrap_or(Timestamp::MAX)
}
