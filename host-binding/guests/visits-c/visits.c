// visits: counts visits and remembers visitors in wasi:keyvalue. The twin of ../visits-rust.
//
// One run is one visit; the first argument is the visitor's name, "world" without one. The report
// on stdout tells what the runs before left. An error of the store goes to stderr, exit status 1.
//
// Keys, all in the default bucket:
//   visits/count        visits so far          written by increment
//   visits/by/NAME      visits by NAME         written by increment
//   visits/first        who came first         written by set
//   visits/last/name    who came last          written by set-many
//   visits/last/number  and as which visit     written by set-many
//   visits/log          the latest visitors    written by compare-and-swap
//
// imports.h is made from ../../../wit by wit-bindgen. Nothing is freed: a visit is short, and the
// memory goes with the component.

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "imports.h"

#define PREFIX "visits/"
#define LOG_VISITORS_MAX 5

typedef imports_string_t string_t;
typedef imports_list_u8_t bytes_t;
typedef wasi_keyvalue_store_borrow_bucket_t bucket_t;
typedef wasi_keyvalue_store_error_t error_t;

static _Noreturn void fail(const char *call, const error_t *error) {
    switch (error->tag) {
    case WASI_KEYVALUE_STORE_ERROR_NO_SUCH_STORE:
        fprintf(stderr, "visits: %s: no such store\n", call);
        break;
    case WASI_KEYVALUE_STORE_ERROR_ACCESS_DENIED:
        fprintf(stderr, "visits: %s: access denied\n", call);
        break;
    default:
        fprintf(stderr, "visits: %s: %.*s\n", call, (int)error->val.other.len, (char *)error->val.other.ptr);
    }
    exit(1);
}

static void *allocate(size_t size) {
    void *memory = malloc(size ? size : 1);
    if (!memory) abort();
    return memory;
}

// A C string as a string of the interface, and as bytes of a value. Neither copies.
static string_t string(const char *text) { return (string_t){(uint8_t *)text, strlen(text)}; }
static bytes_t bytes(const char *text) { return (bytes_t){(uint8_t *)text, strlen(text)}; }

static int64_t increment(bucket_t bucket, const char *name) {
    string_t key = string(name);
    error_t error;
    int64_t count;
    if (!wasi_keyvalue_atomics_increment(bucket, &key, 1, &count, &error)) fail("increment", &error);
    return count;
}

// `name`, then the newest entries of `log`, separated by ", ".
static bytes_t log_with(const char *name, bytes_t log) {
    size_t kept = 0;
    for (int entries = 1; kept < log.len; kept++) {
        int at_separator = log.ptr[kept] == ',' && kept + 1 < log.len && log.ptr[kept + 1] == ' ';
        if (at_separator && ++entries == LOG_VISITORS_MAX) break;
    }
    size_t name_len = strlen(name);
    bytes_t longer = {allocate(name_len + 2 + kept), name_len};
    memcpy(longer.ptr, name, name_len);
    if (kept > 0) {
        memcpy(longer.ptr + name_len, ", ", 2);
        memcpy(longer.ptr + name_len + 2, log.ptr, kept);
        longer.len += 2 + kept;
    }
    return longer;
}

// Puts `name` at the head of the log and returns the log. Visits may run at the same time: the swap
// fails if another one wrote the log since we read it, and hands us a fresh attempt.
static bytes_t remember(bucket_t bucket, const char *name) {
    string_t key = string(PREFIX "log");
    error_t error;
    wasi_keyvalue_atomics_own_cas_t cas;
    if (!wasi_keyvalue_atomics_static_cas_new(bucket, &key, &cas, &error)) fail("cas.new", &error);
    for (;;) {
        imports_option_list_u8_t before;
        if (!wasi_keyvalue_atomics_method_cas_current(wasi_keyvalue_atomics_borrow_cas(cas), &before, &error))
            fail("cas.current", &error);
        bytes_t log = log_with(name, before.is_some ? before.val : bytes(""));

        wasi_keyvalue_atomics_cas_error_t failure;
        if (wasi_keyvalue_atomics_swap(cas, &log, &failure)) return log;
        if (failure.tag != WASI_KEYVALUE_ATOMICS_CAS_ERROR_CAS_FAILED) fail("swap", &failure.val.store_error);
        cas = failure.val.cas_failed;
    }
}

static int compare_keys(const void *left, const void *right) {
    const string_t *a = left, *b = right;
    int order = memcmp(a->ptr, b->ptr, a->len < b->len ? a->len : b->len);
    return order ? order : (a->len > b->len) - (a->len < b->len);
}

// The keys of this program, sorted: a listing has no order, and the bucket may hold other keys.
static imports_list_string_t list_keys(bucket_t bucket) {
    imports_list_string_t keys = {NULL, 0};
    string_t *cursor = NULL;
    for (;;) {
        error_t error;
        wasi_keyvalue_store_key_response_t page;
        if (!wasi_keyvalue_store_method_bucket_list_keys(bucket, cursor, &page, &error)) fail("list-keys", &error);
        keys.ptr = realloc(keys.ptr, (keys.len + page.keys.len + 1) * sizeof(string_t));
        if (!keys.ptr) abort();
        for (size_t i = 0; i < page.keys.len; i++) {
            string_t key = page.keys.ptr[i];
            if (key.len >= strlen(PREFIX) && memcmp(key.ptr, PREFIX, strlen(PREFIX)) == 0) keys.ptr[keys.len++] = key;
        }
        if (!page.cursor.is_some) break;
        cursor = allocate(sizeof *cursor);
        *cursor = page.cursor.val;
    }
    qsort(keys.ptr, keys.len, sizeof(string_t), compare_keys);
    return keys;
}

static void print(bytes_t text) { fwrite(text.ptr, 1, text.len, stdout); }

int main(int argc, char **argv) {
    const char *name = argc > 1 ? argv[1] : "world";
    error_t error;

    string_t identifier = string("");
    wasi_keyvalue_store_own_bucket_t opened;
    if (!wasi_keyvalue_store_open(&identifier, &opened, &error)) fail("open", &error);
    bucket_t bucket = wasi_keyvalue_store_borrow_bucket(opened);

    string_t last_key = string(PREFIX "last/name");
    imports_option_list_u8_t last;
    if (!wasi_keyvalue_store_method_bucket_get(bucket, &last_key, &last, &error)) fail("get", &error);
    if (!last.is_some) {
        string_t first_key = string(PREFIX "first");
        bytes_t first = bytes(name);
        if (!wasi_keyvalue_store_method_bucket_set(bucket, &first_key, &first, &error)) fail("set", &error);
    }

    int64_t visit = increment(bucket, PREFIX "count");
    char *by_key = allocate(strlen(PREFIX "by/") + strlen(name) + 1);
    strcat(strcpy(by_key, PREFIX "by/"), name);
    int64_t visits_by_name = increment(bucket, by_key);

    bytes_t log = remember(bucket, name);

    char number[24];
    snprintf(number, sizeof number, "%" PRId64, visit);
    imports_tuple2_string_list_u8_t pairs[] = {
        {last_key, bytes(name)},
        {string(PREFIX "last/number"), bytes(number)},
    };
    imports_list_tuple2_string_list_u8_t both = {pairs, 2};
    if (!wasi_keyvalue_batch_set_many(bucket, &both, &error)) fail("set-many", &error);

    imports_list_string_t keys = list_keys(bucket);
    imports_list_option_tuple2_string_list_u8_t stored;
    if (!wasi_keyvalue_batch_get_many(bucket, &keys, &stored, &error)) fail("get-many", &error);

    printf("Visit %" PRId64 ". Welcome, %s!\n", visit, name);
    if (last.is_some) {
        printf("The last visit was by ");
        print(last.val);
        printf(".\n");
    } else {
        printf("First visit: nothing stored yet.\n");
    }
    printf("Visits by %s: %" PRId64 ".\nLatest visitors: ", name, visits_by_name);
    print(log);
    printf("\nStored keys:\n");
    for (size_t i = 0; i < stored.len; i++) {
        if (!stored.ptr[i].is_some) continue; // deleted since it was listed
        printf("  ");
        print((bytes_t){stored.ptr[i].val.f0.ptr, stored.ptr[i].val.f0.len});
        printf(" = ");
        print(stored.ptr[i].val.f1);
        printf("\n");
    }

    wasi_keyvalue_store_bucket_drop_own(opened);
    return 0;
}
