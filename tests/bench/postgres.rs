//! PostgreSQL through Portcullis, beside the same straight to the server, through pgbouncer and through HAProxy.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::{Value, json};

use crate::{
    median,
    peers::{Peers, Way},
    scenario::{Effort, Figure, SCENARIOS, Scenario, prepare},
};

/// One line of the table.
#[derive(Debug)]
pub struct Line {
    /// What was measured.
    scenario: &'static str,
    /// Of what.
    figure: &'static str,
    unit: &'static str,
    way: &'static str,
    median: f64,
    least: f64,
    most: f64,
    /// To the same straight to the server, in the same run; of speeds more is better, of all else less.
    to_direct: Option<f64>,
    to_pgbouncer: Option<f64>,
}

/// Measures, in turns, every scenario whose name contains `only`.
pub fn run(effort: Effort, only: &str) -> Result<Vec<Line>> {
    let peers = Peers::start()?;
    prepare(&peers, effort)?;
    let mut lines = Vec::new();
    let wanted = |scenario: &&Scenario| {
        if only.is_empty() { scenario.extent <= effort.extent } else { scenario.name.contains(only) }
    };
    for scenario in SCENARIOS.iter().filter(wanted) {
        eprintln!("{} ...", scenario.name);
        let mut found = vec![BTreeMap::<Way, Vec<f64>>::new(); scenario.figures().len()];
        for _ in 0..scenario.rounds.unwrap_or(effort.rounds) {
            for way in Way::ALL.into_iter().filter(|way| effort.extent.compares() || *way == Way::Portcullis) {
                for (found, value) in found.iter_mut().zip(scenario.take(&peers, effort, way)?) {
                    found.entry(way).or_default().extend(value);
                }
            }
        }
        for (figure, found) in scenario.figures().iter().zip(&found) {
            lines.extend(table(scenario, *figure, found));
        }
    }
    Ok(lines)
}

fn table(scenario: &Scenario, figure: Figure, found: &BTreeMap<Way, Vec<f64>>) -> Vec<Line> {
    let measured = |way| found.get(&way).filter(|values| !values.is_empty());
    let middle = |way| measured(way).map(|values| median(values.clone()));
    let line = |way: Way| {
        let values = measured(way)?;
        let median = median(values.clone());
        Some(Line {
            scenario: scenario.name,
            figure: figure.name,
            unit: figure.unit,
            way: way.name(),
            median,
            least: values.iter().copied().fold(f64::INFINITY, f64::min),
            most: values.iter().copied().fold(0.0, f64::max),
            to_direct: middle(Way::Direct).map(|base| median / base),
            to_pgbouncer: middle(Way::Pgbouncer).map(|base| median / base),
        })
    };
    Way::ALL.into_iter().filter_map(line).collect()
}

/// The lines as JSON.
pub fn json(lines: &[Line]) -> Value {
    let one = |line: &Line| {
        let Line { scenario, figure, unit, way, median, least, most, to_direct, to_pgbouncer } = line;
        json!({
            "scenario": scenario, "figure": figure, "unit": unit, "way": way, "median": median, "least": least,
            "most": most, "to_direct": to_direct, "to_pgbouncer": to_pgbouncer,
        })
    };
    lines.iter().map(one).collect()
}

/// The lines as a table that fits 80 columns.
pub fn print(lines: &[Line]) {
    let mut before = ("", "");
    for line in lines {
        if (line.scenario, line.figure) != before {
            let is_new = line.scenario != before.0;
            before = (line.scenario, line.figure);
            let figure = if line.figure.is_empty() { String::new() } else { format!(", {}", line.figure) };
            let title = if is_new { format!("{}{figure}", line.scenario) } else { format!("  {}", line.figure) };
            let gap = if is_new { "\n" } else { "" };
            println!(
                "{gap}{title:34} {:>10} {:>10} {:>10} {:>6} {:>6}",
                line.unit, "least", "most", "direct", "bouncr"
            );
        }
        let digits = if line.median < 10.0 { 3 } else { usize::from(line.median < 1000.0) };
        let ratio = |ratio: Option<f64>| ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"));
        println!(
            "    {:30} {:>10.digits$} {:>10.digits$} {:>10.digits$} {:>6} {:>6}",
            line.way,
            line.median,
            line.least,
            line.most,
            ratio(line.to_direct),
            ratio(line.to_pgbouncer),
        );
    }
}
