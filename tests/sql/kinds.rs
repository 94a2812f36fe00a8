//! Which verbs each kind of statement must have, by PostgreSQL's own names of kinds.

use pg_query::NodeRef;
use portcullis::action::Verb::{self, Admin, Delete, Execute, Read, Schema, Session, Write};

/// Verbs of which a statement that holds this node must have one.
pub fn needs(node: &NodeRef<'_>) -> Option<&'static [Verb]> {
    Some(match node {
        NodeRef::InsertStmt(_) | NodeRef::UpdateStmt(_) => &[Write],
        NodeRef::DeleteStmt(_) | NodeRef::TruncateStmt(_) => &[Delete],
        NodeRef::MergeStmt(_) => &[Write, Delete, Read],
        NodeRef::IntoClause(_) => &[Schema],
        _ => return None,
    })
}

/// Verbs of which a statement of this kind must have one. `None`: of a query its parts decide.
pub fn top(node: &NodeRef<'_>) -> Option<&'static [Verb]> {
    Some(match node {
        NodeRef::SelectStmt(_) | NodeRef::ExplainStmt(_) => return None,
        NodeRef::InsertStmt(_) | NodeRef::UpdateStmt(_) | NodeRef::NotifyStmt(_) => &[Write],
        NodeRef::DeleteStmt(_) | NodeRef::TruncateStmt(_) => &[Delete],
        NodeRef::MergeStmt(_) => &[Write, Delete, Read],
        NodeRef::CopyStmt(_) => &[Read, Write, Delete, Session, Admin, Execute, Schema],
        NodeRef::LockStmt(_) => &[Read, Write],
        NodeRef::DoStmt(_) | NodeRef::CallStmt(_) => &[Execute],
        NodeRef::TransactionStmt(_)
        | NodeRef::VariableSetStmt(_)
        | NodeRef::VariableShowStmt(_)
        | NodeRef::ConstraintsSetStmt(_)
        | NodeRef::PrepareStmt(_)
        | NodeRef::ExecuteStmt(_)
        | NodeRef::DeallocateStmt(_)
        | NodeRef::DeclareCursorStmt(_)
        | NodeRef::FetchStmt(_)
        | NodeRef::ClosePortalStmt(_)
        | NodeRef::ListenStmt(_)
        | NodeRef::UnlistenStmt(_)
        | NodeRef::DiscardStmt(_) => &[Session, Admin],
        NodeRef::CreateStmt(_)
        | NodeRef::ViewStmt(_)
        | NodeRef::IndexStmt(_)
        | NodeRef::CreateTableAsStmt(_)
        | NodeRef::RefreshMatViewStmt(_)
        | NodeRef::DropStmt(_)
        | NodeRef::RenameStmt(_)
        | NodeRef::CommentStmt(_)
        | NodeRef::AlterTableStmt(_)
        | NodeRef::AlterObjectSchemaStmt(_)
        | NodeRef::AlterObjectDependsStmt(_)
        | NodeRef::AlterFunctionStmt(_)
        | NodeRef::AlterDomainStmt(_)
        | NodeRef::AlterEnumStmt(_)
        | NodeRef::AlterSeqStmt(_)
        | NodeRef::AlterStatsStmt(_)
        | NodeRef::AlterTypeStmt(_)
        | NodeRef::AlterCollationStmt(_)
        | NodeRef::AlterTsdictionaryStmt(_)
        | NodeRef::AlterTsconfigurationStmt(_)
        | NodeRef::CompositeTypeStmt(_)
        | NodeRef::CreateDomainStmt(_)
        | NodeRef::CreateEnumStmt(_)
        | NodeRef::CreateFunctionStmt(_)
        | NodeRef::CreateRangeStmt(_)
        | NodeRef::CreateSchemaStmt(_)
        | NodeRef::CreateSeqStmt(_)
        | NodeRef::CreateStatsStmt(_)
        | NodeRef::CreateTrigStmt(_)
        | NodeRef::DefineStmt(_)
        | NodeRef::VacuumStmt(_)
        | NodeRef::ReindexStmt(_) => &[Schema, Admin],
        // Everything else changes rights, the server, or code that others run.
        _ => &[Admin],
    })
}
