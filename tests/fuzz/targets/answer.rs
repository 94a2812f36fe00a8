#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| portcullis::protocol::llm::fuzz::answer(data));
