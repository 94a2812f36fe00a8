#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    portcullis::sql::fuzz::lineage(&String::from_utf8_lossy(data));
});
