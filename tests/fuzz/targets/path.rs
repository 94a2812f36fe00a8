#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    portcullis::protocol::postgres::fuzz::path(&String::from_utf8_lossy(data));
});
