//! Benchmarks, run by `cargo xtask bench`. Each compares in the same run, in turns, and prints ratios: a time alone says
//! more about the machine than about Portcullis.

mod connect;

use anyhow::{Result, bail};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["connect"] => connect::run(connect::Print::Table),
        ["connect", "--json"] => connect::run(connect::Print::Json),
        // What `connect` starts.
        ["connect-client", cgroup, address, count] => {
            connect::client(cgroup.as_ref(), address.parse()?, count.parse()?)
        }
        ["connect-server", cgroup] => connect::server(cgroup.as_ref()),
        _ => bail!("usage: bench connect [--json]"),
    }
}

/// The middle one.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
