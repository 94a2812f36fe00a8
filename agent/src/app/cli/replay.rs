//! A session as it happened.

use std::{
    io::{self, Write},
    time::Duration,
};

use super::{CliError, Exit, print};
use crate::record::{
    Event,
    replay::{Colour, Renderer, ReplayOptions},
};

/// Longest pause between two events, whatever the session did.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Prints events in order; with `speed`, in the time that they took, divided by it.
pub(super) fn show(events: &[Event], speed: Option<u32>) -> Result<Exit, CliError> {
    let colour = match print::Colour::of_stdout() {
        print::Colour::Always => Colour::Always,
        print::Colour::Never => Colour::Never,
    };
    let mut renderer = Renderer::new(ReplayOptions { colour, ..ReplayOptions::default() });
    let mut out = io::stdout();
    for event in events {
        let frame = renderer.frame(event);
        if let Some(speed) = speed {
            std::thread::sleep((frame.delay / speed).min(LONGEST_PAUSE));
        }
        out.write_all(frame.text.as_bytes())?;
        out.flush()?;
    }
    Ok(Exit::Ok)
}
