//! The BPF programs of Portcullis, a file per hook.
//!
//! Every program fails closed: what it cannot read, does not know or does not understand is refused. Programs are
//! attached to the stable parent cgroup of a workload, so that whatever runs below is governed from its first
//! instruction. The exceptions are `accepted` and `released`, which are attached to the enforcer's own cgroup, and those of
//! [`lsm`], which see the whole host and know governed tasks by their cgroups.
#![no_std]
#![no_main]

mod accepted;
mod bind;
mod carry;
mod connect;
mod lsm;
mod maps;
mod names;
mod packets;
mod peername;
mod recvmsg;
mod refusal;
mod released;
mod sendmsg;
mod setsockopt;
mod sock_create;
mod unix;

/// Verdict of cgroup programs: refuse.
const REFUSE: i32 = 0;
/// Verdict of cgroup programs: go on.
const ALLOW: i32 = 1;

/// The kernel lets only GPL-compatible programs call the helpers used here; this object, alone in the project, is
/// under both licences.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Unreachable: the verifier refuses a program that could come here, since it would loop for ever.
    loop {}
}
