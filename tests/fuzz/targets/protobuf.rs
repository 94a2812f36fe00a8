#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| portcullis::protocol::http::fuzz::protobuf(data));
