//! `audit verify`.

use std::{
    io::{self, Write},
    path::Path,
};

use super::{CliError, Exit, Place, args::Form, json_line, must_exist, print};
use crate::{
    app::evidence,
    control::{
        client::ask_one,
        proto::{Request, Verified},
    },
};

pub(super) fn verify(house: &Place, record: Option<&Path>, form: Form) -> Result<Exit, CliError> {
    let verified: Verified = match record {
        Some(dir) => {
            must_exist(dir)?;
            evidence::verify(dir).map_err(|error| CliError::Plain(Exit::Failed, super::chain(&error), None))?
        }
        None => ask_one(&house.socket()?, &Request::AuditVerify {})?,
    };
    if form.json {
        json_line(&verified)?;
    } else {
        let mut out = io::stdout();
        writeln!(out, "{} events in {} segments checked", verified.events, verified.segments)?;
        writeln!(out, "signed by {}", print::one_line(&verified.public_key))?;
        match &verified.problem {
            None => writeln!(out, "every byte is as it was written")?,
            Some(problem) => writeln!(out, "NOT INTACT: {}", print::one_line(problem))?,
        }
    }
    Ok(if verified.intact { Exit::Ok } else { Exit::Failed })
}
