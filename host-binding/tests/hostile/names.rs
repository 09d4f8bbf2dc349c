//! Names of buckets that mean something elsewhere: here they are names that nobody granted.

use crate::guest::{End, Host};

/// What `open` answers of a name: the class of its error.
#[track_caller]
fn opens(name: &[u8], end: End) {
    let data: String = name.iter().map(|byte| format!("\\{byte:02x}")).collect();
    let body = format!("(data (i32.const 0x80000) \"{data}\") RUN (call $open_ #0x80000 #{})", name.len());
    Host::new().run(&body, end, &[]);
}

/// One test per name; each is told apart from `main` and the other names that exist.
macro_rules! unknown {
    ($($case:ident: $name:expr;)*) => {
        $(
            #[test]
            fn $case() {
                opens(&$name[..], End::Returns(1));
            }
        )*
    };
}

unknown! {
    a_name_that_climbs: b"../main";
    a_name_that_is_a_root: b"/";
    a_name_with_an_absolute_path: b"/etc/passwd";
    a_name_of_a_drive: b"C:";
    a_name_of_a_device: b"NUL";
    a_name_with_a_nul_at_its_end: b"main\0";
    a_name_that_is_a_nul: b"\0";
    a_name_in_other_case: b"MAIN";
    a_name_with_a_space: b"main ";
    a_name_that_is_escaped: b"%6dain";
    a_name_with_a_separator: b"main/";
    a_name_that_turns_the_text_around: "\u{202e}niam".as_bytes();
    a_name_decomposed: "e\u{301}".as_bytes();
    a_name_with_a_mark: "\u{feff}main".as_bytes();
    a_name_with_terminal_codes: b"\x1b[2Jmain\n";
    an_empty_name: b"";
    a_name_of_the_stores_own_catalogue: b"bmain";
    a_name_of_the_limit: &[b'n'; 256];
    a_name_over_the_limit: &[b'n'; 257];
    a_name_of_64_kib: vec![b'n'; 65_536];
}

#[test]
fn a_composed_name_is_the_one_that_was_granted() {
    opens("\u{e9}".as_bytes(), End::Returns(0));
}

#[test]
fn a_withheld_name_is_denied() {
    opens(b"withheld", End::Returns(2));
}

#[test]
fn a_name_that_is_not_text_traps() {
    opens(b"\xff\xfe", End::Traps("utf-8"));
}

#[test]
fn where_names_are_hidden_all_are_denied_alike() {
    let host = Host::with(|builder| builder.hide_withheld(true));
    let body = "(if (i32.ne #2 (call $open_ @none)) (then (return #1))) (call $open_ @absent)";
    host.run(body, End::Returns(2), &[]);
}
