//! Readers of others that ours are compared with.

use std::io::{self, Cursor, Read, Write};

use portcullis::protocol::http::fuzz::{self, Said};
use tungstenite::{
    Message,
    protocol::{Role, WebSocket},
};

/// Reads from memory, and forgets what is written.
struct Memory<'a>(Cursor<&'a [u8]>);

impl Read for Memory<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Memory<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Every message of WebSocket that is read here is read by another reader too, in the same order.
pub fn websocket(data: &[u8]) {
    let messages = fuzz::websocket(data);
    let role = if fuzz::is_from_client(data) { Role::Server } else { Role::Client };
    let stream = Memory(Cursor::new(data.get(1..).unwrap_or_default()));
    let mut other = WebSocket::from_raw_socket(stream, role, None);
    for message in messages {
        let said = loop {
            match other.read() {
                Ok(Message::Text(text)) => break Said::Text(text.as_bytes().to_vec()),
                Ok(Message::Binary(content)) => break Said::Binary(content.to_vec()),
                Ok(Message::Ping(_) | Message::Pong(_)) => {}
                other => panic!("another reader does not read {message:?}: {other:?}"),
            }
        };
        assert_eq!(said, message);
    }
}
