//! Types shared between the BPF programs and the agent: `repr(C)`, padded by hand, `u32` instead of `bool`.
#![cfg_attr(not(feature = "user"), no_std)]
