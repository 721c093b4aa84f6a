#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| reflow::fuzzing::components(bytes));
