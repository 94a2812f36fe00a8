//! One folder per protocol. Adding one is a folder and a line in [`all`].

pub mod http;
pub mod llm;
pub mod postgres;

use std::sync::Arc;

use crate::session::Protocol;

/// Every protocol that the enforcer speaks.
pub fn all() -> Vec<Arc<dyn Protocol>> {
    vec![Arc::new(postgres::Postgres::default()), Arc::new(http::Http), Arc::new(llm::Llm::default())]
}
