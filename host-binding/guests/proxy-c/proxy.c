/* Counts the visits of each path and says which one this is. Some paths are for tests of the host's limits: /trap dies,
   /loop never returns, /grow takes all the memory it can get, /late answers and then goes on working for ever.

   No C library beyond the allocator: a proxy has no standard streams to speak of. */

#include "proxy.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

static char text[256];

static bool is(const proxy_string_t *path, const char *what) {
    return path->len == strlen(what) && memcmp(path->ptr, what, path->len) == 0;
}

/* The count of `path` in the default bucket, one more than before; or why there is none. */
static size_t visit(proxy_string_t *path) {
    proxy_string_t bucket_name = {(uint8_t *)"", 0};
    wasi_keyvalue_store_own_bucket_t bucket;
    wasi_keyvalue_store_error_t error;
    int64_t count = 0;
    if (!wasi_keyvalue_store_open(&bucket_name, &bucket, &error)) {
        strcpy(text, "No bucket.\n");
        return strlen(text);
    }
    if (!wasi_keyvalue_atomics_increment(wasi_keyvalue_store_borrow_bucket(bucket), path, 1, &count, &error)) {
        size_t len = error.tag == 2 && error.val.other.len < 200 ? error.val.other.len : 0;
        memcpy(text, error.val.other.ptr, len);
        text[len] = '\n';
        return len + 1;
    }
    char digits[20];
    size_t at = sizeof digits;
    do digits[--at] = (char)('0' + count % 10); while ((count /= 10) > 0);
    memcpy(text, "Visit ", 6);
    memcpy(text + 6, digits + at, sizeof digits - at);
    memcpy(text + 6 + sizeof digits - at, ".\n", 2);
    return 8 + sizeof digits - at;
}

static void answer(exports_wasi_http_incoming_handler_own_response_outparam_t out, size_t len) {
    wasi_http_types_own_outgoing_response_t response =
        wasi_http_types_constructor_outgoing_response(wasi_http_types_constructor_fields());
    wasi_http_types_own_outgoing_body_t body;
    wasi_http_types_own_output_stream_t stream;
    wasi_io_streams_stream_error_t stream_error;
    wasi_http_types_error_code_t error;
    wasi_http_types_method_outgoing_response_body(wasi_http_types_borrow_outgoing_response(response), &body);
    wasi_http_types_result_own_outgoing_response_error_code_t result = {.is_err = false, .val.ok = response};
    wasi_http_types_static_response_outparam_set(out, &result);
    wasi_http_types_method_outgoing_body_write(wasi_http_types_borrow_outgoing_body(body), &stream);
    proxy_list_u8_t contents = {(uint8_t *)text, len};
    wasi_io_streams_method_output_stream_blocking_write_and_flush(
        wasi_io_streams_borrow_output_stream(stream), &contents, &stream_error);
    wasi_io_streams_output_stream_drop_own(stream);
    wasi_http_types_static_outgoing_body_finish(body, NULL, &error);
}

void exports_wasi_http_incoming_handler_handle(
    exports_wasi_http_incoming_handler_own_incoming_request_t request,
    exports_wasi_http_incoming_handler_own_response_outparam_t out) {
    proxy_string_t path = {(uint8_t *)"", 0};
    wasi_http_types_method_incoming_request_path_with_query(wasi_http_types_borrow_incoming_request(request), &path);
    if (is(&path, "/trap")) __builtin_trap();
    if (is(&path, "/loop")) for (volatile int i = 0;; i++) {}
    if (is(&path, "/grow")) while (__builtin_wasm_memory_grow(0, 16) != (size_t)-1) {}
    answer(out, visit(&path));
    if (is(&path, "/late")) for (volatile int i = 0;; i++) {}
}
