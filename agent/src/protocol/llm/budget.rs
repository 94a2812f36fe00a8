//! What of models a session and a workload may still use.
//!
//! A request reserves what it can cost at most before it goes, and settles for what it did cost when it has ended: requests at
//! once cannot use the same rest. Where the request does not say how long its answer may be, [`UNSAID`] tokens are reserved;
//! an answer that is longer is still counted, so a budget can be passed by what is under way, and then refuses all that
//! follows.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    policy::{Budget, Price},
    record::Usage,
    session::ConnectionCx,
};

/// Tokens that are reserved for an answer whose request names no limit.
const UNSAID: u64 = 4096;
/// How many accounts are kept before those of ended sessions are closed.
const ACCOUNTS: usize = 1024;

/// Whose budget it is: workload, upstream, and session where it is one's own.
type Owner = (Arc<str>, Arc<str>, Option<Arc<str>>);

/// All accounts of a daemon.
#[derive(Debug, Default)]
pub struct Budgets(Mutex<HashMap<Owner, Account>>);

#[derive(Clone, Copy, Debug)]
struct Account {
    since: Instant,
    used: Amount,
}

#[derive(Clone, Copy, Debug, Default)]
struct Amount {
    requests: u64,
    tokens: u64,
    cost: u64,
}

/// A budget that does not allow a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Spent {
    /// Used up.
    #[error("the {whose} budget of {what} is used up ({limit}{per}){again}")]
    Up {
        /// `session` or `workload`.
        whose: &'static str,
        /// What is limited.
        what: &'static str,
        /// How much it is.
        limit: String,
        /// For how long it is.
        per: String,
        /// When there is more.
        again: String,
    },
    /// Money is limited, and the model has no price.
    #[error("the policy limits money and has no price for the model {0}")]
    NoPrice(Arc<str>),
}

/// What a request reserved. Dropped, it is given back.
#[derive(Debug)]
pub struct Reserved {
    budgets: Arc<Budgets>,
    owners: Vec<(Owner, Instant)>,
    price: Option<Price>,
    amount: Amount,
}

impl Budgets {
    /// Reserves what a request can cost.
    ///
    /// # Errors
    /// There is not so much left.
    pub fn reserve(
        self: &Arc<Self>,
        cx: &ConnectionCx,
        model: &Arc<str>,
        input: u64,
        max_output: Option<u64>,
    ) -> Result<Reserved, Spent> {
        let spec = &cx.upstream.models;
        let price = spec.price(model).cloned();
        let output = max_output.unwrap_or(UNSAID);
        let cost = price.as_ref().map_or(0, |price| price.of(input, output));
        let amount = Amount { requests: 1, tokens: input.saturating_add(output), cost };
        let (who, name) = (&cx.subject, &cx.upstream.name);
        let limits = [("session", &spec.session, Some(Arc::clone(&who.session))), ("workload", &spec.workload, None)];
        let limits = limits.into_iter().filter_map(|(whose, budget, session)| {
            let owner: Owner = (Arc::clone(&who.workload), Arc::clone(name), session);
            Some((whose, budget.as_ref()?, owner))
        });
        let limits: Vec<_> = limits.collect();
        if price.is_none() && limits.iter().any(|(_, budget, _)| budget.cost.is_some()) {
            return Err(Spent::NoPrice(Arc::clone(model)));
        }
        let now = Instant::now();
        let mut accounts = self.lock();
        close_ended(&mut accounts, |session| cx.house.sessions.get(session).is_some());
        let mut owners = Vec::new();
        for (whose, budget, owner) in &limits {
            let account = accounts.entry(owner.clone()).or_insert(Account { since: now, used: Amount::default() });
            account.renew(budget, now);
            account.allows(whose, budget, &amount, now)?;
            owners.push((owner.clone(), account.since));
        }
        for (owner, _) in &owners {
            if let Some(account) = accounts.get_mut(owner) {
                account.used.add(&amount);
            }
        }
        Ok(Reserved { budgets: Arc::clone(self), owners, price, amount })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Owner, Account>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Closes accounts of sessions that have ended, where there are many.
fn close_ended(accounts: &mut HashMap<Owner, Account>, is_live: impl Fn(&str) -> bool) {
    if accounts.len() > ACCOUNTS {
        accounts.retain(|(_, _, session), _| session.as_ref().is_none_or(|session| is_live(session)));
    }
}

impl Account {
    /// Begins anew where its time is over.
    fn renew(&mut self, budget: &Budget, now: Instant) {
        if budget.per.is_some_and(|per| now.duration_since(self.since) >= per) {
            *self = Self { since: now, used: Amount::default() };
        }
    }

    fn allows(&self, whose: &'static str, budget: &Budget, more: &Amount, now: Instant) -> Result<(), Spent> {
        let up = |what, limit: String| {
            let left = budget.per.map(|per| per.saturating_sub(now.duration_since(self.since)));
            Spent::Up {
                whose,
                what,
                limit,
                per: budget.per.map(|per| format!(" in {}", seconds(per))).unwrap_or_default(),
                again: left.map(|left| format!("; there is more in {}", seconds(left))).unwrap_or_default(),
            }
        };
        let over = |used: u64, more: u64, limit: Option<u64>| limit.filter(|limit| used.saturating_add(more) > *limit);
        if let Some(limit) = over(self.used.requests, more.requests, budget.requests) {
            return Err(up("requests", limit.to_string()));
        }
        if let Some(limit) = over(self.used.tokens, more.tokens, budget.tokens) {
            return Err(up("tokens", limit.to_string()));
        }
        match over(self.used.cost, more.cost, budget.cost) {
            Some(limit) => Err(up("money", format!("{}.{:06}", limit / 1_000_000, limit % 1_000_000))),
            None => Ok(()),
        }
    }
}

fn seconds(time: Duration) -> String {
    format!("{} s", time.as_secs().max(1))
}

impl Amount {
    fn add(&mut self, more: &Self) {
        self.requests = self.requests.saturating_add(more.requests);
        self.tokens = self.tokens.saturating_add(more.tokens);
        self.cost = self.cost.saturating_add(more.cost);
    }

    fn take(&mut self, less: &Self) {
        self.requests = self.requests.saturating_sub(less.requests);
        self.tokens = self.tokens.saturating_sub(less.tokens);
        self.cost = self.cost.saturating_sub(less.cost);
    }
}

impl Reserved {
    /// What so many tokens cost.
    pub fn cost(&self, input: u64, output: u64) -> Option<u64> {
        self.price.as_ref().map(|price| price.of(input, output))
    }

    /// Settles for what was used.
    pub fn settle(mut self, usage: &Usage) {
        let used = Amount {
            requests: 1,
            tokens: usage.input.saturating_add(usage.output),
            cost: usage.cost.unwrap_or_default(),
        };
        self.replace(Some(&used));
    }

    fn replace(&mut self, by: Option<&Amount>) {
        let mut accounts = self.budgets.lock();
        for (owner, since) in self.owners.drain(..) {
            // What was reserved in a time that is over is gone with it.
            if let Some(account) = accounts.get_mut(&owner).filter(|account| account.since == since) {
                account.used.take(&self.amount);
                by.into_iter().for_each(|used| account.used.add(used));
            }
        }
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.replace(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget() -> Budget {
        Budget { requests: Some(2), tokens: Some(100), cost: None, per: Some(Duration::from_secs(60)) }
    }

    #[test]
    fn an_account_refuses_what_is_over_and_begins_anew() {
        let now = Instant::now();
        let mut account = Account { since: now, used: Amount::default() };
        let more = |tokens| Amount { requests: 1, tokens, cost: 0 };
        assert_eq!(account.allows("session", &budget(), &more(100), now), Ok(()));
        let refused = account.allows("session", &budget(), &more(101), now).expect_err("over");
        assert_eq!(refused.to_string(), "the session budget of tokens is used up (100 in 60 s); there is more in 60 s");
        account.used.add(&more(60));
        account.used.add(&more(10));
        let refused = account.allows("workload", &budget(), &more(1), now + Duration::from_secs(20)).expect_err("over");
        assert_eq!(
            refused.to_string(),
            "the workload budget of requests is used up (2 in 60 s); there is more in 40 s"
        );
        account.renew(&budget(), now + Duration::from_secs(59));
        assert_eq!(account.used.tokens, 70);
        account.renew(&budget(), now + Duration::from_secs(60));
        assert_eq!(account.used.tokens, 0);
    }

    #[test]
    fn accounts_of_ended_sessions_are_closed() {
        let account = Account { since: Instant::now(), used: Amount::default() };
        let mut accounts: HashMap<Owner, Account> = HashMap::new();
        for number in 0..ACCOUNTS {
            let session: Arc<str> = format!("{}-{number}", if number % 2 == 0 { "live" } else { "over" }).into();
            accounts.insert(("w".into(), "u".into(), Some(session)), account);
        }
        let is_live = |session: &str| session.starts_with("live");
        close_ended(&mut accounts, is_live);
        assert_eq!(accounts.len(), ACCOUNTS, "there are not many");
        accounts.insert(("w".into(), "u".into(), None), account);
        close_ended(&mut accounts, is_live);
        // That of the workload stays, whoever is there.
        assert_eq!(accounts.len(), ACCOUNTS / 2 + 1);
        assert!(accounts.keys().all(|(_, _, session)| session.as_ref().is_none_or(|session| is_live(session))));
    }

    #[test]
    fn what_was_reserved_is_settled_once_or_given_back() {
        let budgets = Arc::new(Budgets::default());
        let owner: Owner = ("w".into(), "u".into(), None);
        let now = Instant::now();
        let amount = Amount { requests: 1, tokens: 50, cost: 9 };
        let reserved = |since| Reserved {
            budgets: Arc::clone(&budgets),
            owners: vec![(owner.clone(), since)],
            price: None,
            amount,
        };
        let used = || {
            budgets.lock().get(&owner).map(|account| (account.used.requests, account.used.tokens, account.used.cost))
        };
        budgets.lock().insert(owner.clone(), Account { since: now, used: amount });
        reserved(now).settle(&Usage { input: 3, output: 4, cost: Some(2), estimated: false });
        assert_eq!(used(), Some((1, 7, 2)));
        budgets.lock().insert(owner.clone(), Account { since: now, used: amount });
        drop(reserved(now));
        assert_eq!(used(), Some((0, 0, 0)));
        budgets.lock().insert(owner.clone(), Account { since: now + Duration::from_secs(1), used: amount });
        drop(reserved(now));
        assert_eq!(used(), Some((1, 50, 9)), "of a time that is over");
    }
}
