#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    portcullis::policy::fuzz::policy(&String::from_utf8_lossy(data));
});
