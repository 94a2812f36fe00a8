//! `sessions`, `replay`.

use std::path::Path;

use super::{
    CliError, Exit, Place,
    args::Form,
    json_line, listing, must_exist,
    print::{self, Field, Tone},
};
use crate::{
    app::evidence,
    control::{
        client::{ClientError, ask, ask_all},
        proto::{Request, SessionRow},
    },
    record::Event,
};

/// As much of an id as a table shows: its time in milliseconds and 15 random bits. `replay` and `quarantine` take it.
const SHORT_ID: usize = 13;

pub(super) fn sessions(house: &Place, record: Option<&Path>, form: Form) -> Result<Exit, CliError> {
    let rows: Vec<SessionRow> = match record {
        Some(dir) => {
            must_exist(dir)?;
            evidence::sessions(dir).map_err(failed)?
        }
        None => ask_all(&house.socket()?, &Request::Sessions {})?,
    };
    let header = &["SESSION", "WORKLOAD", "STATE", "STARTED", "SENT", "REFUSED", "INTENT"];
    listing(&rows, form, header, row, "No session was recorded.")
}

pub(super) fn row(session: &SessionRow) -> Vec<Field> {
    let tone = match session.state.as_str() {
        "live" => Tone::Good,
        "quarantined" => Tone::Bad,
        "lost" => Tone::Warn,
        _ => Tone::Plain,
    };
    let started = session.started_at.get(5..16).unwrap_or(&session.started_at).replace('T', " ");
    vec![
        Field::toned(session.session.get(..SHORT_ID).unwrap_or(&session.session), Tone::Key),
        (&session.workload).into(),
        Field::toned(&session.state, tone),
        started.into(),
        session.commands.to_string().into(),
        session.refused.to_string().into(),
        print::shorten(session.intent.as_deref().unwrap_or("-"), 120).into(),
    ]
}

pub(super) fn replay(
    house: &Place,
    session: &str,
    speed: Option<u32>,
    record: Option<&Path>,
    form: Form,
) -> Result<Exit, CliError> {
    let events: Vec<Event> = match record {
        Some(dir) => {
            must_exist(dir)?;
            evidence::session_events(dir, session).map_err(failed)?.map_err(|found| {
                let message = format!("{} recorded sessions begin with `{session}`", found.len());
                CliError::Plain(Exit::Failed, message, Some("`portcullis sessions` lists them".into()))
            })?
        }
        None => ask(&house.socket()?, &Request::Replay { session: session.to_owned() })?
            .map(|item| serde_json::from_str(item?.get()).map_err(ClientError::Garbled))
            .collect::<Result<_, _>>()?,
    };
    if form.json {
        events.iter().try_for_each(json_line)?;
        return Ok(Exit::Ok);
    }
    super::replay::show(&events, speed)
}

fn failed(error: crate::record::RecordError) -> CliError {
    CliError::Plain(
        Exit::Failed,
        super::chain(&error),
        Some("`portcullis audit verify` tells where it is damaged".into()),
    )
}
