//! SQL: lexing, parsing and classification shared by the SQL protocols.
