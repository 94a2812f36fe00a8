//! Queries of our own, on a connection of our own with the injected credential: nothing that an agent does in its
//! session changes the answer. Frames are capped as at a login ([`login::read`]); a larger one is an error.

use bytes::{BufMut, BytesMut};

use super::{
    codec::{self, Field, Frame, put, put_cstr},
    login::{self, LoginError},
};
use crate::{
    session::{BoxIo, ConnectionCx},
    wire::{Reader, pump::Side},
};

/// Most rows that are kept of one answer.
const ROWS_MAX: usize = 500_000;

/// Values as text.
pub type Row = Vec<Option<String>>;

/// A connection of our own. What it has begun is rolled back when it is dropped.
pub struct Own(Side<BoxIo>);

/// A statement and its parameters.
#[derive(Clone, Copy, Debug)]
pub struct Bound<'a> {
    /// Its text.
    pub sql: &'a str,
    /// Types that it declares for its parameters.
    pub types: &'a [u32],
    /// Formats and values of a Bind, up to the formats of the result.
    pub parameters: &'a [u8],
}

/// What came of a statement, beside its rows.
#[derive(Debug, Default)]
pub struct Told {
    /// Columns of its result.
    pub fields: Vec<Field>,
    /// Its CommandComplete; of several statements the last.
    pub tag: String,
}

impl Own {
    /// Logs in to the database of a connection.
    pub async fn connect(cx: &ConnectionCx, settings: &[(&str, &str)]) -> Result<Self, LoginError> {
        let database = cx.database().map_or("", |d| d);
        let always =
            [("client_encoding", "UTF8"), ("application_name", "portcullis"), ("standard_conforming_strings", "on")];
        let settings: Vec<_> =
            always.iter().chain(settings).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Ok(Self(login::login_with_refetch(cx, database, &settings).await?.side))
    }

    /// Runs statements without parameters.
    pub async fn simple(&mut self, sql: &str) -> Result<Vec<Row>, LoginError> {
        let mut rows = Vec::new();
        self.simple_each(sql, |_, frame| {
            if rows.len() >= ROWS_MAX {
                return Err(LoginError::Protocol("the answer has too many rows".into()));
            }
            rows.push(row(frame.body()).map_err(|e| LoginError::Protocol(e.to_string()))?);
            Ok(())
        })
        .await?;
        Ok(rows)
    }

    /// The same, row by row.
    pub async fn simple_each(
        &mut self,
        sql: &str,
        each: impl FnMut(&[Field], &Frame) -> Result<(), LoginError>,
    ) -> Result<Told, LoginError> {
        let mut out = BytesMut::new();
        put(&mut out, b'Q', |b| put_cstr(b, sql.as_bytes()));
        self.0.output.extend(&out);
        self.answer(each).await
    }

    /// Runs one statement; a second one in its text is refused by the server.
    pub async fn bound(
        &mut self,
        statement: Bound<'_>,
        each: impl FnMut(&[Field], &Frame) -> Result<(), LoginError>,
    ) -> Result<Told, LoginError> {
        let mut out = BytesMut::new();
        put(&mut out, b'P', |b| {
            b.put_u8(0);
            put_cstr(b, statement.sql.as_bytes());
            // No more than came in a frame that has the same field.
            b.put_u16(u16::try_from(statement.types.len()).unwrap_or(0));
            statement.types.iter().for_each(|oid| b.put_u32(*oid));
        });
        put(&mut out, b'B', |b| {
            b.put_slice(&[0; 2]);
            b.put_slice(statement.parameters);
            b.put_i16(0);
        });
        put(&mut out, b'D', |b| b.put_slice(b"P\0"));
        put(&mut out, b'E', |b| b.put_slice(&[0; 5]));
        put(&mut out, b'S', |_| {});
        self.0.output.extend(&out);
        self.answer(each).await
    }

    /// Everything up to ReadyForQuery.
    async fn answer(
        &mut self,
        mut each: impl FnMut(&[Field], &Frame) -> Result<(), LoginError>,
    ) -> Result<Told, LoginError> {
        let mut told = Told::default();
        let mut error = None;
        loop {
            let frame = login::read(&mut self.0).await?;
            match frame.tag() {
                b'T' => {
                    told.fields =
                        codec::row_description(frame.body()).map_err(|e| LoginError::Protocol(e.to_string()))?;
                }
                b'D' => each(&told.fields, &frame)?,
                b'C' => told.tag = String::from_utf8_lossy(frame.body()).trim_end_matches('\0').to_owned(),
                b'E' => error = Some(login::server_error(&frame)),
                b'Z' => return error.map_or(Ok(told), Err),
                b'N' | b'S' | b'1' | b'2' | b'n' => {}
                _ => return Err(LoginError::Protocol("an unexpected frame in an answer".into())),
            }
        }
    }
}

/// A row whose values are all there, or empty.
pub fn columns<const N: usize>(row: Row) -> Result<[String; N], LoginError> {
    let values: Vec<String> = row.into_iter().map(Option::unwrap_or_default).collect();
    values.try_into().map_err(|_| LoginError::Protocol("a row of the catalogue has another width".into()))
}

/// A value that is a number.
pub fn number<T: std::str::FromStr>(text: &str) -> Result<T, LoginError> {
    text.parse().map_err(|_| LoginError::Protocol("a row of the catalogue has no number where one should be".into()))
}

/// The values of a DataRow, all as text.
pub fn row(body: &[u8]) -> Result<Row, codec::Malformed> {
    let mut r = Reader::new(body);
    let n = r.count(4)?;
    let row = (0..n)
        .map(|_| r.value()?.map(|v| codec::text(v).map(str::to_owned)).transpose())
        .collect::<Result<_, codec::Malformed>>()?;
    r.all()?;
    Ok(row)
}

/// An identifier as SQL has it.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text constant as SQL has it, where `standard_conforming_strings` is on.
pub fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
