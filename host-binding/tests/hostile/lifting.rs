//! Parameters that point nowhere, overlap everything, or claim to be of gigabytes: a trap of that guest, or an error.

use crate::cases;

/// `$b` is the bucket, and 0x8000 a place for lists.
fn with_bucket(body: &str) -> String {
    format!("(local.set $b (call $main)) {body}")
}

cases! {
    a_key_that_is_not_text: Traps("utf-8"), [], format!("(data (i32.const 0x8000) \"a\\ff\") RUN {}", with_bucket("(call $get_ (local.get $b) #0x8000 #2)"));
    a_key_cut_in_a_letter: Traps("utf-8"), [], format!("(data (i32.const 0x8000) \"\\e2\\82\") RUN {}", with_bucket("(call $set_ (local.get $b) #0x8000 #2 @k)"));
    a_key_with_a_surrogate: Traps("utf-8"), [], format!("(data (i32.const 0x8000) \"\\ed\\a0\\80\") RUN {}", with_bucket("(call $exists_ (local.get $b) #0x8000 #3)"));
    a_key_of_an_overlong_spelling: Traps("utf-8"), [], format!("(data (i32.const 0x8000) \"\\c0\\80\") RUN {}", with_bucket("(call $delete_ (local.get $b) #0x8000 #2)"));
    a_cursor_that_is_not_text: Traps("utf-8"), [], format!("(data (i32.const 0x8000) \"\\ff\") RUN {}", with_bucket("(call $list_ (local.get $b) #1 #0x8000 #1)"));
    a_key_in_a_batch_that_is_not_text: Traps("utf-8"), [], format!("(data (i32.const 0x9000) \"\\ff\") RUN {}", with_bucket(
        "(call $strings #0x8000 #99 #1028 #1 #0) (call $strings #0x8318 #1 #0x9000 #1 #0)
         (call $delete_many_ (local.get $b) #0x8000 #100)"));
    a_key_beyond_memory: Traps("out of bounds"), [], with_bucket("(call $get_ (local.get $b) #0x7fffffff #8)");
    a_key_across_the_end_of_memory: Traps("out of bounds"), [], with_bucket("(call $get_ (local.get $b) (i32.sub (i32.mul (memory.size) #65536) #4) #8)");
    a_key_of_four_gigabytes: Traps(""), [], with_bucket("(call $get_ (local.get $b) #1024 #-1)");
    a_value_whose_end_wraps: Traps(""), [], with_bucket("(call $set_ (local.get $b) @k #-16 #32)");
    a_value_of_four_gigabytes: Traps(""), [], with_bucket("(call $set_ (local.get $b) @k #0 #-1)");
    a_swap_of_four_gigabytes: Traps(""), [], with_bucket("(drop (call $attempt_ (local.get $b) @k)) (call $swap_ (call $given) #0 #-1)");
    a_list_of_four_billion_keys: Traps(""), [], with_bucket("(call $get_many_ (local.get $b) #0 #-1)");
    a_list_whose_bytes_wrap_to_nothing: Traps(""), [], with_bucket("(call $get_many_ (local.get $b) #0x8000 #0x20000000)");
    pairs_whose_bytes_wrap_to_few: Traps(""), [], with_bucket("(call $set_many_ (local.get $b) #0x8000 #0x10000001)");
    four_billion_keys_to_delete: Traps(""), [], with_bucket("(call $delete_many_ (local.get $b) #0 #-1)");
    a_list_at_an_odd_address: Traps("aligned"), [], with_bucket("(call $get_many_ (local.get $b) #0x8001 #1)");
    a_list_beyond_memory: Traps(""), [], with_bucket("(call $get_many_ (local.get $b) #0x7ffffff8 #2)");
    a_list_whose_last_key_is_beyond_memory: Traps("out of bounds"), [], with_bucket(
        "(call $strings #0x8000 #99 #1028 #1 #0) (call $strings #0x8318 #1 #0x7fffffff #1 #0)
         (call $delete_many_ (local.get $b) #0x8000 #100)");
    a_list_whose_last_value_is_beyond_memory: Traps("out of bounds"), [], with_bucket(
        "(call $strings #0x8000 #9 #1028 #1 #1)
         (i32.store #0x8090 #1028) (i32.store #0x8094 #1) (i32.store #0x8098 #0x7fffffff) (i32.store #0x809c #9)
         (call $set_many_ (local.get $b) #0x8000 #10)");
    a_list_that_is_its_own_keys: Either, [], with_bucket(
        "(call $strings #0x8000 #100 #0x8000 #800 #0) (call $delete_many_ (local.get $b) #0x8000 #100)");
    a_cursor_that_is_neither_there_nor_absent: Traps("discriminant"), [], with_bucket("(call $list_ (local.get $b) #2 #0 #0)");
    an_answer_beyond_memory: Traps(""), [], with_bucket("(call $get (local.get $b) @k #0x7ffffff0) #0");
    an_answer_at_an_odd_address: Traps("aligned"), [], with_bucket("(call $get (local.get $b) @k #17) #0");
    an_answer_over_the_key_it_answers: Returns(1), [], with_bucket(
        "(drop (call $set_ (local.get $b) #0x8000 #12 @text)) (call $get (local.get $b) #0x8000 #12 #0x8000) (i32.load8_u #0x8004)");
    an_answer_over_a_list_that_is_read: Returns(0), [], with_bucket(
        "(call $strings #0x8000 #100 #1028 #1 #0) (call $get_many (local.get $b) #0x8000 #100 #0x8000) (i32.load8_u #0x8000)");
}
