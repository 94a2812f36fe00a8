#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    portcullis::action::glob::fuzz::glob(&String::from_utf8_lossy(data));
});
