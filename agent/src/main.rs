//! The one program: daemon, launcher and command line.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Few arenas, and what is free goes back to the kernel within a second: a daemon that idles holds little (TUNING.md of
/// jemalloc).
#[expect(unsafe_code, reason = "the name under which the allocator looks for its settings")]
#[unsafe(export_name = "_rjem_malloc_conf")]
static SETTINGS: &[u8; 47] = b"narenas:4,dirty_decay_ms:1000,muzzy_decay_ms:0\0";

fn main() -> ExitCode {
    portcullis::app::cli::main(std::env::args_os())
}
