// probe: runs a script from stdin against wasi:keyvalue and prints one line per command.
//
// The conformance guest. ../README.md defines the script language; ../probe-rust is the twin and
// must print the same bytes. imports.h is made from ../../../wit by wit-bindgen, or from the files of
// another shape of the interface, to which a header of shapes/ gives the names used here.
//
// From top to bottom: memory, output, input tokens, slots, one function per command, the table of
// commands, main. A command first takes all its arguments, then looks into slots, then calls: so a
// malformed line touches nothing. What a command allocates lives until its line is done.

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "imports.h"

#define SLOTS 1024
#define VALUE_SHOWN_BYTES_MAX 64
#define PATTERN_BYTES_MAX 2147483647
#define LIST_ALL_PAGES_MAX 100000

#ifdef SHAPE
#include SHAPE // gives a shape of the interface the names of the usual one
#endif

typedef imports_string_t string_t;
typedef imports_list_u8_t bytes_t;
typedef imports_tuple2_string_list_u8_t pair_t;
typedef wasi_keyvalue_store_error_t error_t;
typedef wasi_keyvalue_store_own_bucket_t own_bucket_t;
typedef wasi_keyvalue_store_borrow_bucket_t bucket_t;
typedef wasi_keyvalue_store_key_response_t page_t;
typedef wasi_keyvalue_atomics_own_cas_t cas_t;
typedef wasi_keyvalue_atomics_cas_error_t cas_error_t;

// ---- Memory -----------------------------------------------------------------------------------

// Every allocation of the current line, newest first.
typedef struct line_memory {
    struct line_memory *next;
    max_align_t data[];
} line_memory_t;

static line_memory_t *line_memory;

static void *allocate(size_t size) {
    line_memory_t *block = malloc(sizeof *block + size);
    if (!block) abort();
    block->next = line_memory;
    line_memory = block;
    return block->data;
}

static void free_line_memory(void) {
    while (line_memory) {
        line_memory_t *next = line_memory->next;
        free(line_memory);
        line_memory = next;
    }
}

// Makes room for one more element of a growing array; the length doubles at powers of two.
static void *grow(void *array, size_t len, size_t element_size) {
    if (len & (len - 1)) return array;
    array = realloc(array, (len ? 2 * len : 1) * element_size);
    if (!array) abort();
    return array;
}

// ---- Output -----------------------------------------------------------------------------------

static void put(const char *text) { fputs(text, stdout); }

static void put_u64(uint64_t number) {
    char digits[20];
    size_t at = sizeof digits;
    do digits[--at] = (char)('0' + number % 10); while (number /= 10);
    fwrite(digits + at, 1, sizeof digits - at, stdout);
}

static void put_s64(int64_t number) {
    if (number < 0) putchar('-');
    put_u64(number < 0 ? -(uint64_t)number : (uint64_t)number);
}

static void put_hash(uint64_t hash) {
    for (int shift = 60; shift >= 0; shift -= 4) putchar("0123456789abcdef"[hash >> shift & 15]);
}

#define FNV1A64_START 0xcbf29ce484222325u

static uint64_t fnv1a64(uint64_t hash, const uint8_t *bytes, size_t len) {
    for (size_t i = 0; i < len; i++) hash = (hash ^ bytes[i]) * 0x100000001b3u;
    return hash;
}

// The hash over `bytes` and a closing 0xff, so that neighbours cannot run into each other.
static uint64_t fnv1a64_item(uint64_t hash, const uint8_t *bytes, size_t len) {
    return fnv1a64(fnv1a64(hash, bytes, len), (const uint8_t *)"\xff", 1);
}

static int is_plain(uint8_t byte) {
    return (byte >= 'A' && byte <= 'Z') || (byte >= 'a' && byte <= 'z') || (byte >= '0' && byte <= '9')
        || (byte != 0 && strchr("_./:+-", byte));
}

static void put_encoded(const uint8_t *bytes, size_t len) {
    if (len == 0) putchar('%');
    for (size_t i = 0; i < len; i++) {
        if (is_plain(bytes[i])) {
            putchar(bytes[i]);
        } else {
            putchar('%');
            putchar("0123456789ABCDEF"[bytes[i] >> 4]);
            putchar("0123456789ABCDEF"[bytes[i] & 15]);
        }
    }
}

static void put_text(string_t text) { put_encoded(text.ptr, text.len); }

static void put_value(bytes_t value) {
    if (value.len <= VALUE_SHOWN_BYTES_MAX) {
        put_encoded(value.ptr, value.len);
        return;
    }
    putchar('#');
    put_u64(value.len);
    putchar(':');
    put_hash(fnv1a64(FNV1A64_START, value.ptr, value.len));
}

static void put_option(imports_option_list_u8_t *value) {
    put(value->is_some ? "some " : "none");
    if (value->is_some) put_value(value->val);
    imports_option_list_u8_free(value);
}

static void put_error(error_t *error) {
    switch (error->tag) {
    case WASI_KEYVALUE_STORE_ERROR_NO_SUCH_STORE: put("no-such-store"); break;
    case WASI_KEYVALUE_STORE_ERROR_ACCESS_DENIED: put("access-denied"); break;
#ifdef SHAPE_WASMCLOUD
    case WASMCLOUD_KEYVALUE_TYPES_ERROR_INVALID_ARGUMENT: put("invalid-argument"); break;
    case WASMCLOUD_KEYVALUE_TYPES_ERROR_PRECONDITION_FAILED: put("precondition-failed"); break;
    case WASMCLOUD_KEYVALUE_TYPES_ERROR_TIMEOUT: put("timeout"); break;
    case WASMCLOUD_KEYVALUE_TYPES_ERROR_STORE_UNAVAILABLE: put("store-unavailable"); break;
    case WASMCLOUD_KEYVALUE_TYPES_ERROR_QUOTA_EXCEEDED: put("quota-exceeded"); break;
#endif
    default:
        put("other(");
        put_text(error->val.other);
        putchar(')');
    }
    wasi_keyvalue_store_error_free(error);
}

static void put_err(error_t *error) {
    put("err ");
    put_error(error);
}

// The failure of one round of many.
static void put_err_at(uint64_t index, error_t *error) {
    put("err ");
    put_u64(index);
    putchar(' ');
    put_error(error);
}

static void put_result(bool ok, error_t *error) {
    if (ok) put("ok");
    else put_err(error);
}

// ---- Input tokens -----------------------------------------------------------------------------

// What is left of a line, and whether an argument so far was missing or malformed.
typedef struct {
    const uint8_t *at, *end; // `at` stands on a separator, or at the end
    bool bad;
} args_t;

static bool more(args_t *args) { return args->at < args->end; }

// The next token as it stands in the line; empty, and marked as bad, if there is none.
static bytes_t take(args_t *args) {
    if (!more(args)) {
        args->bad = true;
        return (bytes_t){NULL, 0};
    }
    const uint8_t *start = ++args->at;
    while (args->at < args->end && *args->at != ' ') args->at++;
    if (args->at == start) args->bad = true;
    return (bytes_t){(uint8_t *)start, (size_t)(args->at - start)};
}

// Whether the line had all arguments and no more; prints the complaint otherwise.
static bool complete(args_t *args) {
    bool ok = !args->bad && !more(args);
    if (!ok) put("err bad-command");
    return ok;
}

// Digits, 1 to 18 of them.
static bool parse_u64(bytes_t token, uint64_t *number) {
    *number = 0;
    if (token.len < 1 || token.len > 18) return false;
    for (size_t i = 0; i < token.len; i++) {
        if (token.ptr[i] < '0' || token.ptr[i] > '9') return false;
        *number = *number * 10 + (token.ptr[i] - '0');
    }
    return true;
}

// An optional minus sign and 1 to 19 digits, within the range of s64.
static bool parse_s64(bytes_t token, int64_t *number) {
    bool negative = token.len > 0 && token.ptr[0] == '-';
    size_t digits = token.len - negative;
    uint64_t size = 0;
    if (digits < 1 || digits > 19) return false;
    for (size_t i = negative; i < token.len; i++) {
        if (token.ptr[i] < '0' || token.ptr[i] > '9') return false;
        size = size * 10 + (token.ptr[i] - '0');
    }
    if (size > (uint64_t)INT64_MAX + negative) return false;
    *number = (int64_t)(negative ? -size : size);
    return true;
}

static int hex_digit(uint8_t digit) {
    if (digit >= '0' && digit <= '9') return digit - '0';
    if (digit >= 'A' && digit <= 'F') return digit - 'A' + 10;
    if (digit >= 'a' && digit <= 'f') return digit - 'a' + 10;
    return -1;
}

// The bytes that a token stands for; a lone % is the empty one.
static bytes_t decode(args_t *args, bytes_t token) {
    bytes_t bytes = {allocate(token.len), 0};
    if (token.len == 0) args->bad = true;
    if (token.len == 1 && token.ptr[0] == '%') return bytes;
    for (size_t i = 0; i < token.len; i++) {
        uint8_t byte = token.ptr[i];
        if (byte == '%') {
            int high = i + 1 < token.len ? hex_digit(token.ptr[i + 1]) : -1;
            int low = i + 2 < token.len ? hex_digit(token.ptr[i + 2]) : -1;
            if (high < 0 || low < 0) {
                args->bad = true;
                return bytes;
            }
            byte = (uint8_t)(high << 4 | low);
            i += 2;
        }
        bytes.ptr[bytes.len++] = byte;
    }
    return bytes;
}

// As Unicode defines it: shortest form, no surrogates, nothing above U+10FFFF.
static bool is_utf8(bytes_t text) {
    for (size_t i = 0; i < text.len;) {
        uint8_t lead = text.ptr[i++];
        if (lead < 0x80) continue;
        if (lead < 0xc2 || lead > 0xf4) return false;
        int following = lead < 0xe0 ? 1 : lead < 0xf0 ? 2 : 3;
        uint8_t low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80; // bounds of the second byte
        uint8_t high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
        for (; following > 0; following--, i++, low = 0x80, high = 0xbf) {
            if (i == text.len || text.ptr[i] < low || text.ptr[i] > high) return false;
        }
    }
    return true;
}

static string_t decode_text(args_t *args, bytes_t token) {
    bytes_t bytes = decode(args, token);
    if (!is_utf8(bytes)) args->bad = true;
    return (string_t){bytes.ptr, bytes.len};
}

// A value: @N is N bytes of a pattern.
static bytes_t decode_value(args_t *args, bytes_t token) {
    if (token.len == 0 || token.ptr[0] != '@') return decode(args, token);
    uint64_t len;
    if (!parse_u64((bytes_t){token.ptr + 1, token.len - 1}, &len) || len > PATTERN_BYTES_MAX) {
        args->bad = true;
        return (bytes_t){NULL, 0};
    }
    bytes_t value = {allocate(len), len};
    for (uint64_t i = 0; i < len; i++) value.ptr[i] = (uint8_t)((i * 31 + 7) % 251);
    return value;
}

static string_t take_text(args_t *args) { return decode_text(args, take(args)); }
static bytes_t take_value(args_t *args) { return decode_value(args, take(args)); }

static uint64_t take_u64(args_t *args) {
    uint64_t number;
    if (!parse_u64(take(args), &number)) args->bad = true;
    return number;
}

static int64_t take_s64(args_t *args) {
    int64_t number = 0;
    if (!parse_s64(take(args), &number)) args->bad = true;
    return number;
}

static size_t take_slot(args_t *args) {
    uint64_t slot = take_u64(args);
    if (slot < SLOTS) return slot;
    args->bad = true;
    return 0;
}

// All the keys that are left.
static imports_list_string_t take_texts(args_t *args) {
    imports_list_string_t texts = {allocate((size_t)(args->end - args->at) * sizeof(string_t)), 0};
    while (more(args) && !args->bad) texts.ptr[texts.len++] = take_text(args);
    return texts;
}

// All the pairs K=V that are left.
static imports_list_tuple2_string_list_u8_t take_pairs(args_t *args) {
    imports_list_tuple2_string_list_u8_t pairs = {allocate((size_t)(args->end - args->at) * sizeof(pair_t)), 0};
    while (more(args) && !args->bad) {
        bytes_t token = take(args);
        uint8_t *equals = token.len ? memchr(token.ptr, '=', token.len) : NULL;
        if (!equals) {
            args->bad = true;
            break;
        }
        bytes_t key = {token.ptr, (size_t)(equals - token.ptr)};
        bytes_t value = {equals + 1, token.len - key.len - 1};
        pairs.ptr[pairs.len].f0 = decode_text(args, key);
        pairs.ptr[pairs.len++].f1 = decode_value(args, value);
    }
    return pairs;
}

// A run of generated keys: the prefix followed by FROM, FROM+1, … in decimal.
typedef struct {
    string_t prefix;
    uint64_t from, count;
} run_t;

static run_t take_run(args_t *args) {
    run_t run;
    run.prefix = take_text(args);
    run.from = take_u64(args);
    run.count = take_u64(args);
    return run;
}

// `number` in decimal after `prefix`, written to `buffer`, which has 20 bytes more than the prefix.
static string_t numbered(uint8_t *buffer, string_t prefix, uint64_t number) {
    size_t digits = 1;
    for (uint64_t rest = number; rest >= 10; rest /= 10) digits++;
    memcpy(buffer, prefix.ptr, prefix.len);
    for (size_t i = digits; i > 0; i--, number /= 10) buffer[prefix.len + i - 1] = (uint8_t)('0' + number % 10);
    return (string_t){buffer, prefix.len + digits};
}

static string_t run_key(uint8_t *buffer, run_t run, uint64_t i) { return numbered(buffer, run.prefix, run.from + i); }

static imports_list_string_t run_keys(run_t run) {
    if (run.count > SIZE_MAX / sizeof(pair_t)) abort();
    imports_list_string_t keys = {allocate(run.count * sizeof(string_t)), run.count};
    for (uint64_t i = 0; i < run.count; i++) keys.ptr[i] = run_key(allocate(run.prefix.len + 20), run, i);
    return keys;
}

// ---- Slots ------------------------------------------------------------------------------------

static struct {
    bool used;
    own_bucket_t bucket;
    imports_option_string_t cursor; // where `list-next` goes on
} buckets[SLOTS];

static struct {
    bool used;
    cas_t cas;
} attempts[SLOTS];

// The handles of `open-many` and `cas-many`.
static own_bucket_t *kept_buckets;
static cas_t *kept_attempts;
static size_t kept_buckets_len, kept_attempts_len;

static bool filled(bool used) {
    if (!used) put("err empty-slot");
    return used;
}

static bucket_t bucket_in(size_t slot) { return wasi_keyvalue_store_borrow_bucket(buckets[slot].bucket); }

static void remember_cursor(size_t slot, imports_option_string_t cursor) {
    imports_option_string_free(&buckets[slot].cursor);
    buckets[slot].cursor = cursor;
}

static void empty_bucket_slot(size_t slot) {
    if (!buckets[slot].used) return;
    remember_cursor(slot, (imports_option_string_t){.is_some = false});
    wasi_keyvalue_store_bucket_drop_own(buckets[slot].bucket);
    buckets[slot].used = false;
}

static void empty_cas_slot(size_t slot) {
    if (!attempts[slot].used) return;
    wasi_keyvalue_atomics_cas_drop_own(attempts[slot].cas);
    attempts[slot].used = false;
}

// ---- Commands: one key ------------------------------------------------------------------------

static void command_open(args_t *args) {
    size_t slot = take_slot(args);
    string_t name = take_text(args);
    if (!complete(args)) return;
    own_bucket_t bucket;
    error_t error;
    bool ok = wasi_keyvalue_store_open(&name, &bucket, &error);
    if (ok) {
        empty_bucket_slot(slot);
        buckets[slot].used = true;
        buckets[slot].bucket = bucket;
    }
    put_result(ok, &error);
}

static void command_drop(args_t *args) {
    size_t slot = take_slot(args);
    if (!complete(args) || !filled(buckets[slot].used)) return;
    empty_bucket_slot(slot);
    put("ok");
}

static void get(size_t slot, string_t key) {
    imports_option_list_u8_t value;
    error_t error;
    if (wasi_keyvalue_store_method_bucket_get(bucket_in(slot), &key, &value, &error)) put_option(&value);
    else put_err(&error);
}

static void command_get(args_t *args) {
    size_t slot = take_slot(args);
    string_t key = take_text(args);
    if (!complete(args) || !filled(buckets[slot].used)) return;
    get(slot, key);
}

static void command_badkey(args_t *args) {
    size_t slot = take_slot(args);
    if (!complete(args) || !filled(buckets[slot].used)) return;
    get(slot, (string_t){(uint8_t *)"\xff\xfe", 2});
}

static void command_set(args_t *args) {
    size_t slot = take_slot(args);
    string_t key = take_text(args);
    bytes_t value = take_value(args);
    if (!complete(args) || !filled(buckets[slot].used)) return;
    error_t error;
    put_result(wasi_keyvalue_store_method_bucket_set(bucket_in(slot), &key, &value, &error), &error);
}

static void command_delete(args_t *args) {
    size_t slot = take_slot(args);
    string_t key = take_text(args);
    if (!complete(args) || !filled(buckets[slot].used)) return;
    error_t error;
    put_result(wasi_keyvalue_store_method_bucket_delete(bucket_in(slot), &key, &error), &error);
}

static void command_exists(args_t *args) {
    size_t slot = take_slot(args);
    string_t key = take_text(args);
    if (!complete(args) || !filled(buckets[slot].used)) return;
    bool exists;
    error_t error;
    if (wasi_keyvalue_store_method_bucket_exists(bucket_in(slot), &key, &exists, &error))
        put(exists ? "true" : "false");
    else
        put_err(&error);
}

static void command_increment(args_t *args) {
    size_t slot = take_slot(args);
    string_t key = take_text(args);
    int64_t delta = take_s64(args), sum;
    if (!complete(args) || !filled(buckets[slot].used)) return;
    error_t error;
    if (!wasi_keyvalue_atomics_increment(bucket_in(slot), &key, delta, &sum, &error)) {
        put_err(&error);
        return;
    }
    put("ok ");
    put_s64(sum);
}

// ---- Commands: listing ------------------------------------------------------------------------

static void put_page(size_t slot, page_t *page) {
    put("keys ");
    put_u64(page->keys.len);
    for (size_t i = 0; i < page->keys.len; i++) {
        putchar(' ');
        put_text(page->keys.ptr[i]);
    }
    put(" cursor ");
    string_t next = page->cursor.val;
    if (!page->cursor.is_some) put("-");
    else if (next.len == 1 && next.ptr[0] == '-') put("%2D");
    else put_text(next);
    remember_cursor(slot, page->cursor);
    imports_list_string_free(&page->keys);
}

static void list(size_t slot, string_t *cursor) {
    page_t page;
    error_t error;
    if (wasi_keyvalue_store_method_bucket_list_keys(bucket_in(slot), cursor, &page, &error)) put_page(slot, &page);
    else put_err(&error);
}

static void command_list(args_t *args) {
    size_t slot = take_slot(args);
    bytes_t token = take(args);
    bool none = token.len == 1 && token.ptr[0] == '-';
    string_t cursor = decode_text(args, token);
    if (!complete(args) || !filled(buckets[slot].used)) return;
    list(slot, none ? NULL : &cursor);
}

static void command_list_next(args_t *args) {
    size_t slot = take_slot(args);
    if (!complete(args) || !filled(buckets[slot].used)) return;
    if (buckets[slot].cursor.is_some) list(slot, &buckets[slot].cursor.val);
    else put("err no-cursor");
}

static int compare_texts(const void *left, const void *right) {
    const string_t *a = left, *b = right;
    int order = memcmp(a->ptr, b->ptr, a->len < b->len ? a->len : b->len);
    return order ? order : (a->len > b->len) - (a->len < b->len);
}

static void command_list_all(args_t *args) {
    size_t slot = take_slot(args);
    if (!complete(args) || !filled(buckets[slot].used)) return;

    imports_list_string_t keys = {NULL, 0};
    imports_option_string_t cursor = {.is_some = false};
    uint64_t pages = 0;
    bool failed = false;
    do {
        page_t page;
        error_t error;
        string_t *from = cursor.is_some ? &cursor.val : NULL;
        failed = true;
        if (pages++ == LIST_ALL_PAGES_MAX) {
            put("err runaway");
            break;
        }
        if (!wasi_keyvalue_store_method_bucket_list_keys(bucket_in(slot), from, &page, &error)) {
            put_err(&error);
            break;
        }
        failed = false;
        for (size_t i = 0; i < page.keys.len; i++) {
            keys.ptr = grow(keys.ptr, keys.len, sizeof(string_t));
            keys.ptr[keys.len++] = page.keys.ptr[i];
        }
        free(page.keys.len ? page.keys.ptr : NULL); // the keys themselves live on in `keys`
        imports_option_string_free(&cursor);
        cursor = page.cursor;
    } while (cursor.is_some);

    if (!failed) {
        if (keys.len) qsort(keys.ptr, keys.len, sizeof(string_t), compare_texts);
        uint64_t hash = FNV1A64_START;
        bool duplicate = false;
        for (size_t i = 0; i < keys.len; i++) {
            hash = fnv1a64_item(hash, keys.ptr[i].ptr, keys.ptr[i].len);
            duplicate |= i > 0 && compare_texts(&keys.ptr[i - 1], &keys.ptr[i]) == 0;
        }
        put("keys ");
        put_u64(keys.len);
        put(" pages ");
        put_u64(pages);
        put(" hash ");
        put_hash(hash);
        if (duplicate) put(" dup");
    }
    imports_option_string_free(&cursor);
    imports_list_string_free(&keys);
}

// ---- Commands: compare-and-swap ---------------------------------------------------------------

static void command_cas_new(args_t *args) {
    size_t slot = take_slot(args), bucket_slot = take_slot(args);
    string_t key = take_text(args);
    if (!complete(args) || !filled(buckets[bucket_slot].used)) return;
    cas_t cas;
    error_t error;
    bool ok = wasi_keyvalue_atomics_static_cas_new(bucket_in(bucket_slot), &key, &cas, &error);
    if (ok) {
        empty_cas_slot(slot);
        attempts[slot].used = true;
        attempts[slot].cas = cas;
    }
    put_result(ok, &error);
}

static void command_cas_current(args_t *args) {
    size_t slot = take_slot(args);
    if (!complete(args) || !filled(attempts[slot].used)) return;
    imports_option_list_u8_t value;
    error_t error;
    if (wasi_keyvalue_atomics_method_cas_current(wasi_keyvalue_atomics_borrow_cas(attempts[slot].cas), &value, &error))
        put_option(&value);
    else
        put_err(&error);
}

static void command_cas_swap(args_t *args) {
    size_t slot = take_slot(args);
    bytes_t value = take_value(args);
    if (!complete(args) || !filled(attempts[slot].used)) return;
    attempts[slot].used = false;
    cas_error_t failure;
    if (wasi_keyvalue_atomics_swap(attempts[slot].cas, &value, &failure)) {
        put("ok");
    } else if (failure.tag == WASI_KEYVALUE_ATOMICS_CAS_ERROR_CAS_FAILED) {
        attempts[slot].used = true;
        attempts[slot].cas = failure.val.cas_failed;
        put("cas-failed");
    } else {
        put("store-error ");
        put_error(&failure.val.store_error);
    }
}

static void command_cas_drop(args_t *args) {
    size_t slot = take_slot(args);
    if (!complete(args) || !filled(attempts[slot].used)) return;
    empty_cas_slot(slot);
    put("ok");
}

// ---- Commands: batches ------------------------------------------------------------------------

static void command_get_many(args_t *args) {
    size_t slot = take_slot(args);
    imports_list_string_t keys = take_texts(args);
    if (!complete(args) || !filled(buckets[slot].used)) return;
    imports_list_option_tuple2_string_list_u8_t pairs;
    error_t error;
    if (!wasi_keyvalue_batch_get_many(bucket_in(slot), &keys, &pairs, &error)) {
        put_err(&error);
        return;
    }
    put("ok ");
    put_u64(pairs.len);
    for (size_t i = 0; i < pairs.len; i++) {
        putchar(' ');
        if (!pairs.ptr[i].is_some) {
            putchar('-');
            continue;
        }
        put_text(pairs.ptr[i].val.f0);
        putchar('=');
        put_value(pairs.ptr[i].val.f1);
    }
    imports_list_option_tuple2_string_list_u8_free(&pairs);
}

static void set_many(size_t slot, imports_list_tuple2_string_list_u8_t pairs) {
    error_t error;
    put_result(wasi_keyvalue_batch_set_many(bucket_in(slot), &pairs, &error), &error);
}

static void delete_many(size_t slot, imports_list_string_t keys) {
    error_t error;
    put_result(wasi_keyvalue_batch_delete_many(bucket_in(slot), &keys, &error), &error);
}

static void command_set_many(args_t *args) {
    size_t slot = take_slot(args);
    imports_list_tuple2_string_list_u8_t pairs = take_pairs(args);
    if (!complete(args) || !filled(buckets[slot].used)) return;
    set_many(slot, pairs);
}

static void command_delete_many(args_t *args) {
    size_t slot = take_slot(args);
    imports_list_string_t keys = take_texts(args);
    if (!complete(args) || !filled(buckets[slot].used)) return;
    delete_many(slot, keys);
}

static void command_set_many_gen(args_t *args) {
    size_t slot = take_slot(args);
    run_t run = take_run(args);
    bytes_t value = take_value(args);
    if (!complete(args) || !filled(buckets[slot].used)) return;
    imports_list_string_t keys = run_keys(run);
    imports_list_tuple2_string_list_u8_t pairs = {allocate(keys.len * sizeof(pair_t)), keys.len};
    for (size_t i = 0; i < keys.len; i++) pairs.ptr[i] = (pair_t){keys.ptr[i], value};
    set_many(slot, pairs);
}

static void command_delete_many_gen(args_t *args) {
    size_t slot = take_slot(args);
    run_t run = take_run(args);
    if (!complete(args) || !filled(buckets[slot].used)) return;
    delete_many(slot, run_keys(run));
}

static void command_get_many_gen(args_t *args) {
    size_t slot = take_slot(args);
    run_t run = take_run(args);
    if (!complete(args) || !filled(buckets[slot].used)) return;
    imports_list_string_t keys = run_keys(run);
    imports_list_option_tuple2_string_list_u8_t pairs;
    error_t error;
    if (!wasi_keyvalue_batch_get_many(bucket_in(slot), &keys, &pairs, &error)) {
        put_err(&error);
        return;
    }
    uint64_t found = 0, hash = FNV1A64_START;
    for (size_t i = 0; i < pairs.len; i++) {
        if (!pairs.ptr[i].is_some) continue;
        found++;
        hash = fnv1a64_item(hash, pairs.ptr[i].val.f0.ptr, pairs.ptr[i].val.f0.len);
        hash = fnv1a64_item(hash, pairs.ptr[i].val.f1.ptr, pairs.ptr[i].val.f1.len);
    }
    put("ok ");
    put_u64(pairs.len);
    put(" found ");
    put_u64(found);
    put(" hash ");
    put_hash(hash);
    imports_list_option_tuple2_string_list_u8_free(&pairs);
}

// ---- Commands: loops --------------------------------------------------------------------------

static void command_set_gen(args_t *args) {
    size_t slot = take_slot(args);
    run_t run = take_run(args);
    bytes_t value = take_value(args);
    if (!complete(args) || !filled(buckets[slot].used)) return;
    uint8_t *buffer = allocate(run.prefix.len + 20);
    for (uint64_t i = 0; i < run.count; i++) {
        string_t key = run_key(buffer, run, i);
        error_t error;
        if (!wasi_keyvalue_store_method_bucket_set(bucket_in(slot), &key, &value, &error)) {
            put_err_at(i, &error);
            return;
        }
    }
    put("ok");
}

// Past the buffer of stdout, in which this command's own line has already begun.
static void put_line_at_once(string_t line) {
    for (size_t written = 0; written < line.len;) {
        ssize_t more = write(STDOUT_FILENO, line.ptr + written, line.len - written);
        if (more < 0) exit(1);
        written += (size_t)more;
    }
}

static void command_set_acked(args_t *args) {
    size_t slot = take_slot(args);
    run_t run = {.prefix = take_text(args), .from = 0, .count = take_u64(args)};
    if (!complete(args) || !filled(buckets[slot].used)) return;
    const string_t acked = {(uint8_t *)"acked ", 6};
    uint8_t *buffer = allocate(run.prefix.len + 20), line[6 + 20 + 1];
    for (uint64_t i = 0; i < run.count; i++) {
        string_t key = run_key(buffer, run, i), done = numbered(line, acked, i);
        bytes_t value = {done.ptr + acked.len, done.len - acked.len};
        error_t error;
        if (!wasi_keyvalue_store_method_bucket_set(bucket_in(slot), &key, &value, &error)) {
            put_err_at(i, &error);
            return;
        }
        line[done.len++] = '\n';
        put_line_at_once(done);
    }
    put("ok");
}

static void command_inc_loop(args_t *args) {
    size_t slot = take_slot(args);
    string_t key = take_text(args);
    int64_t delta = take_s64(args), last = 0;
    uint64_t count = take_u64(args);
    if (!complete(args) || !filled(buckets[slot].used)) return;
    bool monotonic = true;
    for (uint64_t i = 0; i < count; i++) {
        int64_t sum;
        error_t error;
        if (!wasi_keyvalue_atomics_increment(bucket_in(slot), &key, delta, &sum, &error)) {
            put_err_at(i, &error);
            return;
        }
        if (i > 0 && ((delta > 0 && sum <= last) || (delta < 0 && sum >= last))) monotonic = false;
        last = sum;
    }
    put("ok ");
    put_s64(last);
    if (!monotonic) put(" not-monotonic");
}

static void put_err_text_at(uint64_t index, const char *text) {
    put("err ");
    put_u64(index);
    putchar(' ');
    put(text);
}

// One successful round of adding 1 by compare-and-swap; prints why if it fails.
static bool cas_round(size_t slot, string_t key, uint64_t index) {
    cas_t cas;
    error_t error;
    if (!wasi_keyvalue_atomics_static_cas_new(bucket_in(slot), &key, &cas, &error)) {
        put_err_at(index, &error);
        return false;
    }
    for (;;) {
        imports_option_list_u8_t value;
        if (!wasi_keyvalue_atomics_method_cas_current(wasi_keyvalue_atomics_borrow_cas(cas), &value, &error)) {
            wasi_keyvalue_atomics_cas_drop_own(cas);
            put_err_at(index, &error);
            return false;
        }
        int64_t number = 0;
        bool good = !value.is_some || parse_s64(value.val, &number);
        imports_option_list_u8_free(&value);
        if (!good || number == INT64_MAX) {
            wasi_keyvalue_atomics_cas_drop_own(cas);
            put_err_text_at(index, "not-a-number");
            return false;
        }
        number++;
        uint8_t digits[20] = "-";
        string_t sign = {digits, number < 0};
        string_t text = numbered(digits, sign, number < 0 ? -(uint64_t)number : (uint64_t)number);
        bytes_t next = {text.ptr, text.len};
        cas_error_t failure;
        if (wasi_keyvalue_atomics_swap(cas, &next, &failure)) return true;
        if (failure.tag != WASI_KEYVALUE_ATOMICS_CAS_ERROR_CAS_FAILED) {
            put_err_at(index, &failure.val.store_error);
            return false;
        }
        cas = failure.val.cas_failed;
    }
}

static void command_cas_loop(args_t *args) {
    size_t slot = take_slot(args);
    string_t key = take_text(args);
    uint64_t count = take_u64(args);
    if (!complete(args) || !filled(buckets[slot].used)) return;
    for (uint64_t i = 0; i < count; i++) {
        if (!cas_round(slot, key, i)) return;
    }
    put("ok ");
    put_u64(count);
}

static void command_swap_loop(args_t *args) {
    size_t slot = take_slot(args);
    string_t key = take_text(args);
    uint64_t count = take_u64(args);
    if (!complete(args) || !filled(buckets[slot].used)) return;
    bytes_t constant = {(uint8_t *)"swapped", 7};
    for (uint64_t i = 0; i < count; i++) {
        cas_t cas;
        imports_option_list_u8_t value;
        error_t error;
        cas_error_t failure;
        if (!wasi_keyvalue_atomics_static_cas_new(bucket_in(slot), &key, &cas, &error)) {
            put_err_at(i, &error);
            return;
        }
        if (!wasi_keyvalue_atomics_method_cas_current(wasi_keyvalue_atomics_borrow_cas(cas), &value, &error)) {
            wasi_keyvalue_atomics_cas_drop_own(cas);
            put_err_at(i, &error);
            return;
        }
        imports_option_list_u8_free(&value);
        if (wasi_keyvalue_atomics_swap(cas, &constant, &failure)) continue;
        if (failure.tag == WASI_KEYVALUE_ATOMICS_CAS_ERROR_CAS_FAILED) {
            wasi_keyvalue_atomics_cas_drop_own(failure.val.cas_failed);
            put_err_text_at(i, "cas-failed");
        } else {
            put_err_at(i, &failure.val.store_error);
        }
        return;
    }
    put("ok ");
    put_u64(count);
}

static void command_open_many(args_t *args) {
    uint64_t count = take_u64(args);
    string_t name = take_text(args);
    if (!complete(args)) return;
    for (uint64_t i = 0; i < count; i++) {
        own_bucket_t bucket;
        error_t error;
        if (!wasi_keyvalue_store_open(&name, &bucket, &error)) {
            put_err_at(i, &error);
            return;
        }
        kept_buckets = grow(kept_buckets, kept_buckets_len, sizeof bucket);
        kept_buckets[kept_buckets_len++] = bucket;
    }
    put("ok ");
    put_u64(count);
}

static void command_cas_many(args_t *args) {
    uint64_t count = take_u64(args);
    size_t slot = take_slot(args);
    string_t key = take_text(args);
    if (!complete(args) || !filled(buckets[slot].used)) return;
    for (uint64_t i = 0; i < count; i++) {
        cas_t cas;
        error_t error;
        if (!wasi_keyvalue_atomics_static_cas_new(bucket_in(slot), &key, &cas, &error)) {
            put_err_at(i, &error);
            return;
        }
        kept_attempts = grow(kept_attempts, kept_attempts_len, sizeof cas);
        kept_attempts[kept_attempts_len++] = cas;
    }
    put("ok ");
    put_u64(count);
}

static void command_drop_many(args_t *args) {
    if (!complete(args)) return;
    while (kept_attempts_len > 0) wasi_keyvalue_atomics_cas_drop_own(kept_attempts[--kept_attempts_len]);
    while (kept_buckets_len > 0) wasi_keyvalue_store_bucket_drop_own(kept_buckets[--kept_buckets_len]);
    free(kept_attempts);
    free(kept_buckets);
    kept_attempts = NULL;
    kept_buckets = NULL;
    put("ok");
}

#ifdef SHAPE_WASMCLOUD
// ---- Commands: what only this shape has -------------------------------------------------------

static void set_with(size_t slot, string_t key, bytes_t value, wasmcloud_keyvalue_types_set_options_t options) {
    error_t error;
    bool ok = wasmcloud_keyvalue_types_method_bucket_set(bucket_in(slot), &key, &value, &options, &error);
    put_result(ok, &error);
}

static void command_set_ttl(args_t *args) {
    size_t slot = take_slot(args);
    string_t key = take_text(args);
    bytes_t value = take_value(args);
    uint64_t ttl_ms = take_u64(args);
    if (!complete(args) || !filled(buckets[slot].used)) return;
    set_with(slot, key, value, (wasmcloud_keyvalue_types_set_options_t){.ttl_ms = {true, ttl_ms}});
}

static void command_set_new(args_t *args) {
    size_t slot = take_slot(args);
    string_t key = take_text(args);
    bytes_t value = take_value(args);
    if (!complete(args) || !filled(buckets[slot].used)) return;
    set_with(slot, key, value, (wasmcloud_keyvalue_types_set_options_t){.if_not_exists = true});
}

static void command_set_new_ttl(args_t *args) {
    size_t slot = take_slot(args);
    string_t key = take_text(args);
    bytes_t value = take_value(args);
    uint64_t ttl_ms = take_u64(args);
    if (!complete(args) || !filled(buckets[slot].used)) return;
    set_with(slot, key, value,
        (wasmcloud_keyvalue_types_set_options_t){.ttl_ms = {true, ttl_ms}, .if_not_exists = true});
}

static void command_list_prefix(args_t *args) {
    size_t slot = take_slot(args);
    string_t prefix = take_text(args);
    bytes_t token = take(args);
    bool none = token.len == 1 && token.ptr[0] == '-';
    string_t cursor = decode_text(args, token);
    if (!complete(args) || !filled(buckets[slot].used)) return;
    page_t page;
    error_t error;
    bool ok = wasmcloud_keyvalue_types_method_bucket_list_keys(
        bucket_in(slot), &prefix, none ? NULL : &cursor, &page, &error);
    if (ok) put_page(slot, &page);
    else put_err(&error);
}

// `current`, with the token.
static void command_version(args_t *args) {
    size_t slot = take_slot(args);
    string_t key = take_text(args);
    if (!complete(args) || !filled(buckets[slot].used)) return;
    wasmcloud_keyvalue_cas_option_entry_t entry;
    error_t error;
    if (!wasmcloud_keyvalue_cas_current(bucket_in(slot), &key, &entry, &error)) {
        put_err(&error);
        return;
    }
    put(entry.is_some ? "version " : "none");
    if (entry.is_some) put_text(entry.val.version);
    wasmcloud_keyvalue_cas_option_entry_free(&entry);
}

// A swap with the conditions given; `-` is none.
static void command_swap_if(args_t *args) {
    size_t slot = take_slot(args);
    string_t key = take_text(args);
    bytes_t value = take_value(args);
    bytes_t version = take(args), expected = take(args);
    bool any_version = version.len == 1 && version.ptr[0] == '-';
    bool any_value = expected.len == 1 && expected.ptr[0] == '-';
    wasmcloud_keyvalue_cas_cas_options_t options = {
        .require_version = {!any_version, decode_text(args, version)},
        .require_value = {!any_value, decode(args, expected)}};
    if (!complete(args) || !filled(buckets[slot].used)) return;
    wasmcloud_keyvalue_cas_cas_result_t result;
    error_t error;
    if (!wasmcloud_keyvalue_cas_swap(bucket_in(slot), &key, &value, &options, &result, &error)) {
        put_err(&error);
    } else if (result.tag == WASMCLOUD_KEYVALUE_CAS_CAS_RESULT_SWAPPED) {
        put("ok");
    } else {
        put(result.val.stale.is_some ? "stale " : "stale");
        if (result.val.stale.is_some) put_value(result.val.stale.val.value);
        wasmcloud_keyvalue_cas_option_entry_free(&result.val.stale);
    }
}
#endif

// ---- Commands: the guest itself ---------------------------------------------------------------

static void command_echo(args_t *args) {
    bytes_t text = decode(args, take(args));
    if (complete(args)) put_encoded(text.ptr, text.len);
}

static void command_spin(args_t *args) {
    if (!complete(args)) return;
    for (;;) __asm__ volatile("");
}

static void command_trap(args_t *args) {
    if (complete(args)) __builtin_trap();
}

static const struct {
    const char *name;
    void (*run)(args_t *args);
} commands[] = {
    {"open", command_open},
    {"drop", command_drop},
    {"get", command_get},
    {"set", command_set},
    {"delete", command_delete},
    {"exists", command_exists},
    {"list", command_list},
    {"list-all", command_list_all},
    {"list-next", command_list_next},
    {"increment", command_increment},
    {"cas-new", command_cas_new},
    {"cas-current", command_cas_current},
    {"cas-swap", command_cas_swap},
    {"cas-drop", command_cas_drop},
    {"get-many", command_get_many},
    {"set-many", command_set_many},
    {"delete-many", command_delete_many},
    {"set-many-gen", command_set_many_gen},
    {"delete-many-gen", command_delete_many_gen},
    {"get-many-gen", command_get_many_gen},
    {"set-gen", command_set_gen},
    {"set-acked", command_set_acked},
    {"inc-loop", command_inc_loop},
    {"cas-loop", command_cas_loop},
    {"swap-loop", command_swap_loop},
    {"open-many", command_open_many},
    {"cas-many", command_cas_many},
    {"drop-many", command_drop_many},
    {"badkey", command_badkey},
#ifdef SHAPE_WASMCLOUD
    {"set-ttl", command_set_ttl},
    {"set-new", command_set_new},
    {"set-new-ttl", command_set_new_ttl},
    {"list-prefix", command_list_prefix},
    {"version", command_version},
    {"swap-if", command_swap_if},
#endif
    {"echo", command_echo},
    {"spin", command_spin},
    {"trap", command_trap},
};

static void run_line(const uint8_t *line, size_t len) {
    const uint8_t *space = memchr(line, ' ', len);
    size_t name_len = space ? (size_t)(space - line) : len;
    args_t args = {line + name_len, line + len, false};
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++) {
        if (strlen(commands[i].name) != name_len || memcmp(commands[i].name, line, name_len)) continue;
        commands[i].run(&args);
        return;
    }
    put("err bad-command");
}

static int run_script(void) {
    char *line = NULL;
    size_t capacity = 0;
    ssize_t len;
    for (uint64_t line_number = 1; (len = getline(&line, &capacity, stdin)) >= 0; line_number++) {
        if (len > 0 && line[len - 1] == '\n') len--;
        if (len == 0 || line[0] == ';') continue;
        put_u64(line_number);
        putchar(' ');
        run_line((uint8_t *)line, (size_t)len);
        putchar('\n');
        if (fflush(stdout)) return 1;
        free_line_memory();
    }
    return 0;
}

#ifdef SHAPE_ASYNC
bool exports_wasi_cli_run_run(void) { return run_script() == 0; }
#else
int main(void) { return run_script(); }
#endif
