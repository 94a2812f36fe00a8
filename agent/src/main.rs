//! The one program: daemon, launcher and command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    portcullis::app::cli::main(std::env::args_os())
}
