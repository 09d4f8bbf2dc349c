//! Case 58 for what there is: one script, one transcript, whatever the guest is written in and wherever the keys live.

use crate::suite::guest::Language;
use crate::suite::target::{Host, Target};
use crate::{engine, memory};

/// Touches every call and every kind of answer; nothing in it may depend on time, order of threads or back end.
const SCRIPT: [&str; 34] = [
    "open 1 nowhere",
    "open 1 a:b",
    "set 0 k%20%00 %FF%00",
    "get 0 k%20%00",
    "get 0 absent",
    "exists 0 absent",
    "set 0 big @100000",
    "get 0 big",
    "set 0 over @8388609",
    "delete 0 absent",
    "increment 0 n -5",
    "increment 0 big 1",
    "increment 0 n 9223372036854775807",
    "increment 0 n 9223372036854775807",
    "cas-new 0 0 n",
    "cas-current 0",
    "increment 0 n 1",
    "cas-swap 0 mine",
    "cas-current 0",
    "cas-swap 0 %",
    "cas-swap 0 again",
    "set-many-gen 0 g 0 1200 @3",
    "get-many 0 g0 absent g1199 g0",
    "get-many-gen 0 g 1190 20",
    "list-all 0",
    "list 0 nonsense",
    "list 1 -",
    "delete-many-gen 0 g 0 1200",
    "list 0 -",
    "cas-loop 0 counter 20",
    "inc-loop 0 counter 3 20",
    "swap-loop 0 s 20",
    "drop 0",
    "get 0 k",
];

fn transcript(language: Language, target: Target) -> Vec<String> {
    let host = Host::new(language, target);
    let mut guest = host.guest();
    SCRIPT.iter().map(|command| guest.call(command)).collect()
}

#[test]
fn c_and_rust_give_one_transcript_on_every_target() {
    let expected = transcript(Language::C, engine());
    assert_eq!(expected.last().unwrap(), "err empty-slot");
    for (language, target) in [(Language::C, memory()), (Language::Rust, engine()), (Language::Rust, memory())] {
        let found = transcript(language, target);
        for ((command, expected), found) in SCRIPT.iter().zip(&expected).zip(&found) {
            assert_eq!(found, expected, "{language:?}: `{command}`");
        }
    }
}
