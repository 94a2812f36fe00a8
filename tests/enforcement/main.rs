//! Enforcement in the real kernel: the redirect and its origins, what is refused, what survives the enforcer's death, and
//! what a confined process has left. Needs root; fails, and never skips, where it cannot run.

mod chaos;
mod claims;
mod confine;
mod daemon;
mod doctor;
mod environment;
mod escape;
mod helper;
mod limits;
mod load;
mod lsm;
mod names;
mod own_user;
mod redirect;
mod refused;
mod room;
mod survival;
mod told;
mod unix;
mod users;
mod world;
