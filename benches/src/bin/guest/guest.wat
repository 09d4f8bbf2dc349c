;; The guest of the binding benchmark: loops over calls, inside the guest, so that entering it costs nothing per call.
;; {VERSION}, {CURSOR}, {CURSOR_FLAT}, {CURSOR_NONE} and {KEYS_LEN_AT} are replaced as text, see `guest.rs`: the two hosts
;; serve different drafts of one interface, which differ in the cursor's type.
(component
  (import "wasi:keyvalue/store@{VERSION}" (instance $store
    (export "bucket" (type $bucket (sub resource)))
    (type $error-def (variant (case "no-such-store") (case "access-denied") (case "other" string)))
    (export "error" (type $error (eq $error-def)))
    (type $page-def (record (field "keys" (list string)) (field "cursor" (option {CURSOR}))))
    (export "key-response" (type $page (eq $page-def)))
    (export "open" (func (param "identifier" string) (result (result (own $bucket) (error $error)))))
    (export "[method]bucket.get" (func (param "self" (borrow $bucket)) (param "key" string)
      (result (result (option (list u8)) (error $error)))))
    (export "[method]bucket.set" (func (param "self" (borrow $bucket)) (param "key" string) (param "value" (list u8))
      (result (result (error $error)))))
    (export "[method]bucket.exists" (func (param "self" (borrow $bucket)) (param "key" string)
      (result (result bool (error $error)))))
    (export "[method]bucket.list-keys" (func (param "self" (borrow $bucket)) (param "cursor" (option {CURSOR}))
      (result (result $page (error $error)))))
  ))
  (alias export $store "bucket" (type $bucket))
  (alias export $store "error" (type $error))
  (import "wasi:keyvalue/batch@{VERSION}" (instance $batch
    (alias outer 1 $bucket (type $bucket-outer))
    (export "bucket" (type $bucket (eq $bucket-outer)))
    (alias outer 1 $error (type $error-outer))
    (export "error" (type $error (eq $error-outer)))
    (export "get-many" (func (param "bucket" (borrow $bucket)) (param "keys" (list string))
      (result (result (list (option (tuple string (list u8)))) (error $error)))))
  ))

  ;; Memory, and what the host calls to place its answers: the pointer is set back before each call, nothing is freed.
  (core module $Memory
    (memory (export "memory") 128)
    (global $free (export "free") (mut i32) (i32.const 0x200000))
    (func (export "realloc") (param $old i32) (param $old-len i32) (param $align i32) (param $len i32) (result i32)
      (local $at i32)
      (local.set $at (i32.and
        (i32.add (global.get $free) (i32.sub (local.get $align) (i32.const 1)))
        (i32.sub (i32.const 0) (local.get $align))))
      (global.set $free (i32.add (local.get $at) (local.get $len)))
      (local.get $at)))
  (core instance $memory (instantiate $Memory))
  (alias core export $memory "memory" (core memory $mem))
  (alias core export $memory "realloc" (core func $realloc))

  (core func $open (canon lower (func $store "open") (memory $mem) (realloc $realloc) string-encoding=utf8))
  (core func $get (canon lower (func $store "[method]bucket.get") (memory $mem) (realloc $realloc) string-encoding=utf8))
  (core func $set (canon lower (func $store "[method]bucket.set") (memory $mem) (realloc $realloc) string-encoding=utf8))
  (core func $exists (canon lower (func $store "[method]bucket.exists") (memory $mem) (realloc $realloc) string-encoding=utf8))
  (core func $list (canon lower (func $store "[method]bucket.list-keys") (memory $mem) (realloc $realloc) string-encoding=utf8))
  (core func $many (canon lower (func $batch "get-many") (memory $mem) (realloc $realloc) string-encoding=utf8))
  (core func $drop (canon resource.drop $bucket))

  ;; Memory map: 16 answer area, 64 key, 4096 list of 100 strings, 8192 their bytes, 0x100000 value to set (1 MiB),
  ;; 0x200000 up answers.
  (core module $Main
    (import "memory" "memory" (memory 1))
    (import "memory" "free" (global $free (mut i32)))
    (import "kv" "open" (func $open (param i32 i32 i32)))
    (import "kv" "get" (func $get (param i32 i32 i32 i32)))
    (import "kv" "set" (func $set (param i32 i32 i32 i32 i32 i32)))
    (import "kv" "exists" (func $exists (param i32 i32 i32 i32)))
    (import "kv" "list" (func $list (param i32 i32 {CURSOR_FLAT} i32)))
    (import "kv" "many" (func $many (param i32 i32 i32 i32)))
    (import "kv" "drop" (func $drop (param i32)))
    (global $bucket (mut i32) (i32.const -1))
    (global $dice (mut i64) (i64.const 0))

    ;; Eight hexadecimal digits of 32 bits, the highest digit in the lowest byte.
    (func $hex (param $x i64) (result i64)
      (local.set $x (i64.or (i64.shr_u (local.get $x) (i64.const 16))
        (i64.shl (i64.and (local.get $x) (i64.const 0xffff)) (i64.const 32))))
      (local.set $x (i64.or
        (i64.and (i64.shr_u (local.get $x) (i64.const 8)) (i64.const 0x000000ff000000ff))
        (i64.shl (i64.and (local.get $x) (i64.const 0x000000ff000000ff)) (i64.const 16))))
      (local.set $x (i64.or
        (i64.and (i64.shr_u (local.get $x) (i64.const 4)) (i64.const 0x000f000f000f000f))
        (i64.shl (i64.and (local.get $x) (i64.const 0x000f000f000f000f)) (i64.const 8))))
      (i64.add
        (i64.add (local.get $x) (i64.const 0x3030303030303030))
        (i64.mul (i64.const 39) (i64.and (i64.const 0x0101010101010101)
          (i64.shr_u (i64.add (local.get $x) (i64.const 0x0606060606060606)) (i64.const 4))))))

    ;; A key by number, as `keys::key` makes it.
    (func $key (param $at i32) (param $number i64)
      (local.set $number (i64.mul (local.get $number) (i64.const 0x9E3779B97F4A7C15)))
      (local.set $number (i64.mul (i64.const 0xD6E8FEB86659FD93)
        (i64.xor (local.get $number) (i64.shr_u (local.get $number) (i64.const 32)))))
      (local.set $number (i64.xor (local.get $number) (i64.shr_u (local.get $number) (i64.const 32))))
      (i64.store align=1 (local.get $at) (i64.const 0x00_00_00_3a_72_65_73_75))
      (i64.store offset=5 align=1 (local.get $at) (call $hex (i64.shr_u (local.get $number) (i64.const 32))))
      (i64.store offset=13 align=1 (local.get $at) (call $hex (i64.and (local.get $number) (i64.const 0xffffffff)))))

    ;; A random number in first .. first + count.
    (func $pick (param $first i32) (param $count i32) (result i64)
      (global.set $dice (i64.add (i64.const 1442695040888963407)
        (i64.mul (global.get $dice) (i64.const 6364136223846793005))))
      (i64.add (i64.extend_i32_u (local.get $first))
        (i64.shr_u (i64.mul (i64.shr_u (global.get $dice) (i64.const 32)) (i64.extend_i32_u (local.get $count)))
          (i64.const 32))))

    (func $next-key (param $first i32) (param $count i32)
      (global.set $free (i32.const 0x200000))
      (call $key (i32.const 64) (call $pick (local.get $first) (local.get $count))))

    (func $must-be-ok (if (i32.load8_u (i32.const 16)) (then (unreachable))))

    ;; Opens the bucket "" for the calls below. What they draw begins with `dice`.
    (func (export "start") (param $dice i64)
      (global.set $dice (local.get $dice))
      (call $open (i32.const 0) (i32.const 0) (i32.const 16))
      (call $must-be-ok)
      (global.set $bucket (i32.load (i32.const 20))))
    (func (export "finish") (call $drop (global.get $bucket)))

    ;; Each of these makes `n` calls and answers a sum that the host can check.
    (func (export "run-keys") (param $n i32) (param $first i32) (param $count i32) (param $size i32) (result i64)
      (loop $again
        (call $next-key (local.get $first) (local.get $count))
        (br_if $again (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
      (i64.const 0))
    (func (export "run-get") (param $n i32) (param $first i32) (param $count i32) (param $size i32) (result i64)
      (local $sum i64)
      (loop $again
        (call $next-key (local.get $first) (local.get $count))
        (call $get (global.get $bucket) (i32.const 64) (i32.const 21) (i32.const 16))
        (call $must-be-ok)
        (if (i32.load8_u (i32.const 20)) (then
          (local.set $sum (i64.add (local.get $sum) (i64.load32_u (i32.const 28))))))
        (br_if $again (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
      (local.get $sum))
    (func (export "run-exists") (param $n i32) (param $first i32) (param $count i32) (param $size i32) (result i64)
      (local $sum i64)
      (loop $again
        (call $next-key (local.get $first) (local.get $count))
        (call $exists (global.get $bucket) (i32.const 64) (i32.const 21) (i32.const 16))
        (call $must-be-ok)
        (local.set $sum (i64.add (local.get $sum) (i64.load8_u (i32.const 20))))
        (br_if $again (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
      (local.get $sum))
    (func (export "run-set") (param $n i32) (param $first i32) (param $count i32) (param $size i32) (result i64)
      (local $sum i64)
      (loop $again
        (call $next-key (local.get $first) (local.get $count))
        (i64.store (i32.const 0x100000) (global.get $dice))
        (call $set (global.get $bucket) (i32.const 64) (i32.const 21)
          (i32.const 0x100000) (local.get $size) (i32.const 16))
        (call $must-be-ok)
        (local.set $sum (i64.add (local.get $sum) (i64.const 1)))
        (br_if $again (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
      (local.get $sum))
    (func (export "run-open") (param $n i32) (param $first i32) (param $count i32) (param $size i32) (result i64)
      (local $sum i64)
      (loop $again
        (call $open (i32.const 0) (i32.const 0) (i32.const 16))
        (call $must-be-ok)
        (call $drop (i32.load (i32.const 20)))
        (local.set $sum (i64.add (local.get $sum) (i64.const 1)))
        (br_if $again (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
      (local.get $sum))
    ;; 100 keys a call; the sum of value bytes.
    (func (export "run-get-many") (param $n i32) (param $first i32) (param $count i32) (param $size i32) (result i64)
      (local $sum i64) (local $i i32) (local $at i32)
      (loop $again
        (global.set $free (i32.const 0x200000))
        (local.set $i (i32.const 0))
        (loop $keys
          (local.set $at (i32.add (i32.const 8192) (i32.mul (local.get $i) (i32.const 24))))
          (call $key (local.get $at) (call $pick (local.get $first) (local.get $count)))
          (i32.store offset=4096 (i32.mul (local.get $i) (i32.const 8)) (local.get $at))
          (i32.store offset=4100 (i32.mul (local.get $i) (i32.const 8)) (i32.const 21))
          (br_if $keys (i32.lt_u (local.tee $i (i32.add (local.get $i) (i32.const 1))) (i32.const 100))))
        (call $many (global.get $bucket) (i32.const 4096) (i32.const 100) (i32.const 16))
        (call $must-be-ok)
        (local.set $i (i32.load (i32.const 24)))
        (local.set $at (i32.load (i32.const 20)))
        (loop $pairs
          (if (i32.load8_u (local.get $at)) (then
            (local.set $sum (i64.add (local.get $sum) (i64.load32_u offset=16 (local.get $at))))))
          (local.set $at (i32.add (local.get $at) (i32.const 20)))
          (br_if $pairs (local.tee $i (i32.sub (local.get $i) (i32.const 1)))))
        (br_if $again (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
      (local.get $sum))
    ;; The first page; the sum of keys.
    (func (export "run-list") (param $n i32) (param $first i32) (param $count i32) (param $size i32) (result i64)
      (local $sum i64)
      (loop $again
        (global.set $free (i32.const 0x200000))
        (call $list (global.get $bucket) (i32.const 0) {CURSOR_NONE} (i32.const 16))
        (call $must-be-ok)
        (local.set $sum (i64.add (local.get $sum) (i64.load32_u (i32.const {KEYS_LEN_AT}))))
        (br_if $again (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))
      (local.get $sum)))
  (core instance $main (instantiate $Main
    (with "memory" (instance $memory))
    (with "kv" (instance
      (export "open" (func $open)) (export "get" (func $get)) (export "set" (func $set))
      (export "exists" (func $exists)) (export "list" (func $list)) (export "many" (func $many))
      (export "drop" (func $drop))))))

  (type $run (func (param "n" u32) (param "first" u32) (param "count" u32) (param "size" u32) (result u64)))
  (func (export "start") (param "dice" u64) (canon lift (core func $main "start")))
  (func (export "finish") (canon lift (core func $main "finish")))
  (func (export "run-keys") (type $run) (canon lift (core func $main "run-keys")))
  (func (export "run-get") (type $run) (canon lift (core func $main "run-get")))
  (func (export "run-exists") (type $run) (canon lift (core func $main "run-exists")))
  (func (export "run-set") (type $run) (canon lift (core func $main "run-set")))
  (func (export "run-open") (type $run) (canon lift (core func $main "run-open")))
  (func (export "run-get-many") (type $run) (canon lift (core func $main "run-get-many")))
  (func (export "run-list") (type $run) (canon lift (core func $main "run-list"))))
