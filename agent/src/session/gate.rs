//! The gate: every command passes here, is judged by the policy then in force, recorded, and, if it must wait, held.
//!
//! Order matters. A command is recorded before its permit exists. What makes a change last is permitted when the record
//! of it, and of all that it makes last, is on disk; if it cannot be recorded, it is refused. Failure mode: refusal.

use std::{
    borrow::Cow,
    cell::RefCell,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::{
    cx::ConnectionCx,
    permit::{Command, HoldNotice, Lasting, Permit, Refusal, Standing},
};
use crate::{
    action::{Action, PromptRef},
    hold::{HoldError, HoldRequest, Outcome, Pending},
    policy::{Decision, Effect, HoldSpec, Remembered},
    record::{Decided, DecisionNote, Parts, Position},
};

/// Longest text of a command on record, in bytes.
const RECORDED: usize = 1 << 20;

/// Judges the commands of one connection.
#[derive(Debug)]
pub struct Gate {
    cx: Arc<ConnectionCx>,
    seq: AtomicU64,
    /// Changes were permitted that the next command may make last, and their record may not be on disk.
    unsynced: AtomicBool,
}

/// A command with its number within the connection, and why it came.
struct Numbered {
    seq: u64,
    why: Option<PromptRef>,
    command: Command,
}

impl std::ops::Deref for Numbered {
    type Target = Command;

    fn deref(&self) -> &Command {
        &self.command
    }
}

/// What the gate answers at once.
pub enum Begun {
    /// Decided.
    Ready(Result<Permit, Refusal>),
    /// It takes time: a hold, or a sync to disk.
    Wait {
        /// What to tell the client, if a person must decide.
        hold: Option<Box<HoldNotice>>,
        /// The answer. Dropping it withdraws the hold.
        answer: BoxFuture<'static, Result<Permit, Refusal>>,
    },
}

impl Gate {
    /// For one connection.
    pub fn new(cx: Arc<ConnectionCx>) -> Self {
        Self { cx, seq: AtomicU64::new(0), unsynced: AtomicBool::new(false) }
    }

    /// Judges a command. Calls for an async runtime only where it must wait.
    pub fn begin(&self, command: Command) -> Begun {
        let decision = self.cx.decide(&command.action);
        self.decided(command, decision)
    }

    /// Judges a command whose action is the one of which `last` remembers the decision.
    pub fn begin_again(&self, command: Command, last: &Remembered) -> Begun {
        let decision = self.cx.decide_again(&command.action, last);
        self.decided(command, decision)
    }

    fn decided(&self, command: Command, decision: Decision) -> Begun {
        let command = self.numbered(command);
        let seq = command.seq;
        match decision {
            Decision::Allow(obligations) => {
                let effect = if obligations.notify { Effect::Notify } else { Effect::Allow };
                self.permit(command, &note(effect, &obligations.rule, None), None)
            }
            Decision::Hold(spec) => self.hold(command, spec),
            Decision::Suggest(reason) => {
                let mut refusal = refusal(&reason.rule, &reason.text, seq);
                refusal.hint = Some("It was recorded as a suggestion; a person may run it.".into());
                self.refuse(&command, &note(Effect::Suggest, &reason.rule, Some(&reason.text)), refusal)
            }
            Decision::Deny(reason) => {
                let refusal = refusal(&reason.rule, &reason.text, seq);
                self.refuse(&command, &note(Effect::Deny, &reason.rule, Some(&reason.text)), refusal)
            }
        }
    }

    /// Judges a command, waiting as long as it takes. Cancel safe: a cancelled wait withdraws the hold.
    pub async fn authorize(&self, command: Command) -> Result<Permit, Refusal> {
        match self.begin(command) {
            Begun::Ready(answer) => answer,
            Begun::Wait { answer, .. } => answer.await,
        }
    }

    /// Judges what only prepares a command, which will be judged again, and recorded, when it runs: refused only if it could
    /// never run. A refusal is recorded, and only for that the whole `command` is made.
    /// `last` remembers the decision, where the same action comes again.
    pub fn prepare(
        &self,
        action: &Action,
        last: Option<&Remembered>,
        bytes: Bytes,
        command: impl FnOnce(Bytes) -> Command,
    ) -> Begun {
        let decision = last.map_or_else(|| self.cx.decide(action), |last| self.cx.decide_again(action, last));
        match decision {
            Decision::Allow(_) | Decision::Hold(_) => Begun::Ready(Ok(Permit { bytes, seq: 0 })),
            Decision::Suggest(_) | Decision::Deny(_) => self.begin(command(bytes)),
        }
    }

    /// Records a command that the protocol itself refuses, whatever the policy says.
    pub fn refuse_by_protocol(&self, command: Command, rule: &'static str, message: String) -> Begun {
        let command = self.numbered(command);
        let seq = command.seq;
        let rule: Arc<str> = Arc::from(rule);
        let note = note(Effect::Deny, &rule, Some(&Arc::from(message.as_str())));
        self.refuse(&command, &note, Refusal { message, rule, hint: None, seq })
    }

    fn numbered(&self, command: Command) -> Numbered {
        let why = self.cx.prompt_ref(&command.action, &command.text);
        Numbered { seq: self.seq.fetch_add(1, Ordering::Relaxed) + 1, why, command }
    }

    fn permit(&self, command: Numbered, note: &DecisionNote, waited: Option<(&str, u64)>) -> Begun {
        match record(&self.cx, &command, note, waited) {
            Err(refusal) => Begun::Ready(Err(refusal)),
            Ok(position) => {
                let durable = self.is_synced_first(&command);
                let Numbered { seq, command, .. } = command;
                let permit = Permit { bytes: command.bytes, seq };
                if durable { self.after_sync(position, Ok(permit)) } else { Begun::Ready(Ok(permit)) }
            }
        }
    }

    fn is_synced_first(&self, command: &Command) -> bool {
        let changes = command.action.changes();
        match command.lasting {
            Lasting::AtOnce => self.unsynced.swap(false, Ordering::Relaxed) || changes,
            Lasting::FromCommit => {
                self.unsynced.fetch_or(changes, Ordering::Relaxed);
                false
            }
        }
    }

    fn refuse(&self, command: &Numbered, note: &DecisionNote, refusal: Refusal) -> Begun {
        match record(&self.cx, command, note, None) {
            Ok(position) => self.after_sync(position, Err(refusal)),
            // The refusal stands all the same.
            Err(_) => Begun::Ready(Err(refusal)),
        }
    }

    fn after_sync(&self, position: Position, answer: Result<Permit, Refusal>) -> Begun {
        let cx = Arc::clone(&self.cx);
        Begun::Wait {
            hold: None,
            answer: Box::pin(async move {
                cx.sync(position).await?;
                answer
            }),
        }
    }

    fn hold(&self, command: Numbered, spec: HoldSpec) -> Begun {
        let rule = Arc::clone(&spec.reason.rule);
        if command.standing == Standing::Continues {
            return self.permit(
                command,
                &note(Effect::Hold, &rule, Some(&"continues an approved command".into())),
                None,
            );
        }
        let subject = &self.cx.subject;
        let request = HoldRequest {
            workload: Arc::clone(&subject.workload),
            session: Arc::clone(&subject.session),
            connection_id: self.cx.id,
            seq: command.seq,
            process: subject.process.clone(),
            intent: subject.intent.clone(),
            turns: command.why.as_ref().map(|why| self.cx.turns.notes(why)).unwrap_or_default(),
            upstream: Arc::clone(&self.cx.upstream.name),
            database: self.cx.database().cloned(),
            command: Arc::clone(&command.text),
            hash: command.hash,
            action: command.action.parts.to_vec(),
            spec,
            shape: command.shape.of(&command.action),
        };
        if let Some(covered) = self.cx.house.holds.covered(&request.as_command()) {
            let mut note = note(Effect::Hold, &rule, Some(&covered.why));
            note.reviewers = covered.reviewers;
            return self.permit(command, &note, Some((&covered.id, 0)));
        }
        let pending = match self.cx.house.holds.request(request.clone()) {
            Ok(pending) => pending,
            Err(error) => return self.no_hold(&command, &rule, &error),
        };
        let notice = HoldNotice {
            id: Arc::clone(pending.id()),
            reviewers: request.spec.reviewers.iter().map(ToString::to_string).collect(),
            expires: request.spec.expires,
            reason: Arc::clone(&request.spec.reason.text),
            request: Arc::new(request),
        };
        let cx = Arc::clone(&self.cx);
        let answer = Box::pin(wait(cx, command, rule, pending));
        Begun::Wait { hold: Some(Box::new(notice)), answer }
    }

    fn no_hold(&self, command: &Numbered, rule: &Arc<str>, error: &HoldError) -> Begun {
        let text: Arc<str> = format!("it needs a reviewer, and cannot wait for one: {error}").into();
        let refusal = refusal(rule, &text, command.seq);
        self.refuse(command, &note(Effect::Deny, rule, Some(&text)), refusal)
    }
}

/// Waits for reviewers, then judges once more: the policy may have changed, and so may the session.
async fn wait(
    cx: Arc<ConnectionCx>,
    command: Numbered,
    rule: Arc<str>,
    mut pending: Pending,
) -> Result<Permit, Refusal> {
    let (id, seq) = (Arc::clone(pending.id()), command.seq);
    let (outcome, waited) = {
        let since = Instant::now();
        let mut waiting = Waiting { cx: &cx, command: &command, rule: &rule, id: &id, since, over: false };
        let outcome = pending.outcome().await;
        waiting.over = true;
        (outcome, waiting.milliseconds())
    };
    let decision_now = cx.decide(&command.action);
    let mut decided = note(Effect::Hold, &rule, None);
    let refusal = match outcome {
        Outcome::Approved { reviewers, reason } => {
            decided.reviewers = reviewers;
            decided.reason = reason.map(Into::into);
            match decision_now {
                Decision::Allow(_) | Decision::Hold(_) => None,
                Decision::Suggest(now) | Decision::Deny(now) => {
                    decided = note(Effect::Deny, &now.rule, Some(&now.text));
                    Some(refusal(&now.rule, &now.text, seq))
                }
            }
        }
        Outcome::Denied { reviewer, reason } => {
            let text = reason.map_or_else(|| format!("denied by {reviewer}"), |r| format!("denied by {reviewer}: {r}"));
            decided.reviewers = vec![reviewer];
            decided.reason = Some(text.as_str().into());
            Some(refusal(&rule, &text, seq))
        }
        Outcome::Expired => {
            let text = "no reviewer answered in time";
            decided.reason = Some(text.into());
            let mut refusal = refusal(&rule, text, seq);
            refusal.hint = Some("Ask a reviewer, then send the command again.".into());
            Some(refusal)
        }
        Outcome::Revoked => {
            let text = "the session lost its rights while the command waited";
            decided.reason = Some(text.into());
            Some(refusal(&rule, text, seq))
        }
    };
    if refusal.is_some() {
        decided.effect = Effect::Deny.as_str().into();
    }
    let position = record(&cx, &command, &decided, Some((&id, waited)))?;
    cx.sync(position).await?;
    match refusal {
        Some(refusal) => Err(refusal),
        None => Ok(Permit { bytes: command.command.bytes, seq }),
    }
}

/// A wait for reviewers. Ended by anything but their answer (the client cancelled, left, or broke off), it leaves the
/// command on record all the same.
struct Waiting<'a> {
    cx: &'a ConnectionCx,
    command: &'a Numbered,
    rule: &'a Arc<str>,
    id: &'a Arc<str>,
    since: Instant,
    over: bool,
}

impl Waiting<'_> {
    fn milliseconds(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let note = note(Effect::Deny, self.rule, Some(&"withdrawn before a reviewer answered".into()));
        // Nothing ran and nobody is left to tell; a record that fails refuses all that follows.
        let _ = record(self.cx, self.command, &note, Some((self.id, self.milliseconds())));
    }
}

/// Records a command with what was decided about it.
fn record(
    cx: &ConnectionCx,
    numbered: &Numbered,
    decision: &DecisionNote,
    waited: Option<(&str, u64)>,
) -> Result<Position, Refusal> {
    let Numbered { seq, why, command } = numbered;
    let (hold, waited_ms) = waited.unzip();
    cx.record_parts(Parts::Command(Decided {
        seq: *seq,
        command: &recorded(&command.text),
        hash: &command.hash,
        action: &command.action.parts,
        decision,
        hold,
        waited_ms,
        prompt_ref: why.as_ref(),
    }))
}

/// The text that the record keeps. Beyond what can be read at all, which is refused, its beginning will do: the hash is of
/// the whole.
fn recorded(text: &str) -> Cow<'_, str> {
    if text.len() <= RECORDED {
        return text.into();
    }
    let end = text.floor_char_boundary(RECORDED);
    format!("{} [... {} more bytes]", &text[..end], text.len() - end).into()
}

/// The name of an effect, which each thread has at hand.
fn label(effect: Effect) -> Arc<str> {
    thread_local! {
        static LABELS: RefCell<Vec<(Effect, Arc<str>)>> = const { RefCell::new(Vec::new()) };
    }
    LABELS.with_borrow_mut(|labels| {
        if let Some((_, label)) = labels.iter().find(|(known, _)| *known == effect) {
            return Arc::clone(label);
        }
        let label: Arc<str> = effect.as_str().into();
        labels.push((effect, Arc::clone(&label)));
        label
    })
}

fn note(effect: Effect, rule: &Arc<str>, reason: Option<&Arc<str>>) -> DecisionNote {
    DecisionNote { effect: label(effect), rule: Arc::clone(rule), reviewers: Vec::new(), reason: reason.cloned() }
}

fn refusal(rule: &Arc<str>, text: &str, seq: u64) -> Refusal {
    Refusal { message: format!("refused by rule \"{rule}\": {text}"), rule: Arc::clone(rule), hint: None, seq }
}
