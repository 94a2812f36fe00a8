//! Benchmarks, run by `cargo xtask bench`. Each compares in the same run, in turns, and prints ratios: a time alone says
//! more about the machine than about Portcullis.

mod classify;
mod connect;
mod http;
mod peers;
mod postgres;
mod scenario;

use anyhow::{Context, Result, bail};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["connect"] => connect::run(connect::Print::Table),
        ["connect", "--json"] => connect::run(connect::Print::Json),
        ["classify"] => classify::run(),
        ["postgres", ref rest @ ..] => compare("postgres", rest, postgres::run, postgres::json, postgres::print),
        ["http", ref rest @ ..] => compare("http", rest, http::run, http::json, http::print),
        // What `connect` starts.
        ["connect-client", cgroup, address, count] => {
            connect::client(cgroup.as_ref(), address.parse()?, count.parse()?)
        }
        ["connect-server", cgroup] => connect::server(cgroup.as_ref()),
        // What `postgres` starts.
        ["idle-client", count] => scenario::idle_client(count.parse()?),
        _ => {
            bail!("usage: bench connect [--json] | classify | postgres|http [--quick | --alone] [--only TEXT] [--json]")
        }
    }
}

/// Runs what compares several ways, and prints what came of it.
fn compare<L>(
    name: &str,
    arguments: &[&str],
    run: fn(scenario::Effort, &str) -> Result<Vec<L>>,
    json: fn(&[L]) -> serde_json::Value,
    print: fn(&[L]),
) -> Result<()> {
    let (mut effort, mut only, mut as_json) = (scenario::Effort::FULL, "", false);
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match *argument {
            "--alone" => effort = scenario::Effort::ALONE,
            "--quick" => effort = scenario::Effort::QUICK,
            "--json" => as_json = true,
            "--only" => only = arguments.next().context("--only needs a part of a name")?,
            other => bail!("`{other}` is no option of `bench {name}`"),
        }
    }
    let lines = run(effort, only)?;
    if as_json {
        println!("{}", json(&lines));
    } else {
        print(&lines);
    }
    Ok(())
}

/// The middle one.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
