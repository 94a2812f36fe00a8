//! What a command that waits for a reviewer would do: the rows that the planner expects, or, where the policy asks for it,
//! those that a dry run changes ([`super::dry_run`]).
//!
//! Both run on a connection of our own under the names of the agent's session. What its open transaction has changed is
//! not seen, nor are its settings. Nothing that calls unknown code comes here: planning may run it.

use std::{sync::Arc, time::Duration};

use super::{
    catalog::Catalog,
    codec::{Bind, Malformed},
    dry_run,
    login::LoginError,
    mask::Masker,
    query::{Bound, Own, quoted},
};
use crate::{hold::Estimate, session::ConnectionCx};

/// How long the planner may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// A command that waits.
pub struct Trial {
    /// The text of its one statement.
    pub sql: Arc<str>,
    /// Types that it declares for its parameters.
    pub types: Box<[u32]>,
    /// Formats and values of its parameters, up to the formats of the result.
    pub parameters: Box<[u8]>,
    /// The schemas that its session searches.
    pub path: Arc<[Arc<str>]>,
    /// The tables and views that it names, and which of them it changes.
    pub relations: Vec<(u32, bool)>,
    /// A transaction is open in its session.
    pub in_transaction: bool,
    /// Try it, not only plan it.
    pub dry_run: bool,
    /// The catalogue that it was judged by.
    pub catalog: Arc<Catalog>,
    /// Masks on what a reviewer sees of it.
    pub masker: Masker,
}

impl Trial {
    /// As a statement of ours.
    pub fn bound<'a>(&'a self, sql: &'a str) -> Bound<'a> {
        Bound { sql, types: &self.types, parameters: &self.parameters }
    }

    /// Its session's `search_path`, for SET.
    pub fn search_path(&self) -> String {
        let names: Vec<String> = self.path.iter().map(|name| quoted(name)).collect();
        if names.is_empty() { "''".to_owned() } else { names.join(", ") }
    }
}

/// The parameters of a Bind, by the part of it that follows its names.
pub fn parameters(essence: &[u8]) -> Result<Box<[u8]>, Malformed> {
    let body = [&[0; 2], essence].concat();
    let formats = Bind::read(&body)?.formats.len();
    Ok(essence[..essence.len() - 2 - 2 * formats].into())
}

/// What a command would do, for its reviewer. Never fails: what could not be had is said.
pub async fn estimate(cx: &ConnectionCx, trial: &Trial) -> Estimate {
    let mut estimate = match trial.dry_run {
        true => match dry_run::run(cx, trial).await {
            Ok(estimate) => estimate,
            Err(why) => {
                let planned = plan(cx, trial).await;
                Estimate { note: format!("{}; no dry run: {why}", planned.note), ..planned }
            }
        },
        false => plan(cx, trial).await,
    };
    if trial.in_transaction && estimate.rows.is_some() {
        estimate.note.push_str("; without what its open transaction has changed");
    }
    estimate
}

async fn plan(cx: &ConnectionCx, trial: &Trial) -> Estimate {
    let rows = tokio::time::timeout(PATIENCE, planned(cx, trial)).await.ok().and_then(Result::ok).flatten();
    let note = match rows {
        Some(_) => "as the planner expects",
        None => "the planner could not be asked",
    };
    Estimate { rows, note: note.into(), counted: false, sample: None }
}

/// Nothing runs: the statement stands behind EXPLAIN, where the server takes no second one.
async fn planned(cx: &ConnectionCx, trial: &Trial) -> Result<Option<u64>, LoginError> {
    let settings = [("default_transaction_read_only", "on"), ("statement_timeout", "5000"), ("lock_timeout", "2000")];
    let mut own = Own::connect(cx, &settings).await?;
    own.simple(&format!("SET search_path = {}", trial.search_path())).await?;
    let mut plan = None;
    let explain = format!("EXPLAIN (FORMAT JSON) {}", trial.sql);
    own.bound(trial.bound(&explain), |_, frame| {
        let row = super::query::row(frame.body()).map_err(|e| LoginError::Protocol(e.to_string()))?;
        let text = row.into_iter().next().flatten().unwrap_or_default();
        plan = serde_json::from_str::<serde_json::Value>(&text).ok();
        Ok(())
    })
    .await?;
    Ok(plan.and_then(|plan| planned_rows(&plan[0]["Plan"])))
}

/// Rows of a plan; of a change those of what it changes.
fn planned_rows(plan: &serde_json::Value) -> Option<u64> {
    if plan["Node Type"] == "ModifyTable" {
        return plan["Plans"].as_array()?.iter().filter_map(planned_rows).max();
    }
    plan["Plan Rows"].as_u64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_end_where_the_formats_of_the_result_begin() {
        let none = [0, 0, 0, 0];
        for formats in [&[0, 0][..], &[0, 1, 0, 1], &[0, 2, 0, 0, 0, 1]] {
            assert_eq!(&*parameters(&[&none, formats].concat()).expect("well formed"), none);
        }
        let one = [0, 1, 0, 1, 0, 1, 0, 0, 0, 4, 0, 0, 0, 7];
        assert_eq!(&*parameters(&[&one[..], &[0, 1, 0, 0]].concat()).expect("well formed"), one);
        assert!(parameters(&one).is_err());
        assert!(parameters(&[]).is_err());
    }
}
