// The names of form A for wasmCloud's package. An attempt at a compare-and-swap is kept here: the bucket, the key, and the token and
// value that `current` gave; where there was nothing, the swap is a `set` with `if-not-exists`.

#define SHAPE_ASYNC
#define SHAPE_WASMCLOUD

typedef wasmcloud_keyvalue_types_error_t wasi_keyvalue_store_error_t;
typedef wasmcloud_keyvalue_types_own_bucket_t wasi_keyvalue_store_own_bucket_t;
typedef wasmcloud_keyvalue_types_borrow_bucket_t wasi_keyvalue_store_borrow_bucket_t;
typedef wasmcloud_keyvalue_types_key_response_t wasi_keyvalue_store_key_response_t;

#define WASI_KEYVALUE_STORE_ERROR_NO_SUCH_STORE WASMCLOUD_KEYVALUE_TYPES_ERROR_NO_SUCH_STORE
#define WASI_KEYVALUE_STORE_ERROR_ACCESS_DENIED WASMCLOUD_KEYVALUE_TYPES_ERROR_ACCESS_DENIED
#define wasi_keyvalue_store_error_free wasmcloud_keyvalue_types_error_free
#define wasi_keyvalue_store_open wasmcloud_keyvalue_store_open
#define wasi_keyvalue_store_borrow_bucket wasmcloud_keyvalue_types_borrow_bucket
#define wasi_keyvalue_store_bucket_drop_own wasmcloud_keyvalue_types_bucket_drop_own
#define wasi_keyvalue_store_method_bucket_get wasmcloud_keyvalue_types_method_bucket_get
#define wasi_keyvalue_store_method_bucket_delete wasmcloud_keyvalue_types_method_bucket_delete
#define wasi_keyvalue_store_method_bucket_exists wasmcloud_keyvalue_types_method_bucket_exists
#define wasi_keyvalue_store_method_bucket_set(bucket, key, value, error) \
    wasmcloud_keyvalue_types_method_bucket_set(bucket, key, value, NULL, error)
#define wasi_keyvalue_store_method_bucket_list_keys(bucket, cursor, page, error) \
    wasmcloud_keyvalue_types_method_bucket_list_keys(bucket, NULL, cursor, page, error)
#define wasi_keyvalue_atomics_increment wasmcloud_keyvalue_atomics_increment
#define wasi_keyvalue_batch_get_many wasmcloud_keyvalue_batch_get_many
#define wasi_keyvalue_batch_set_many wasmcloud_keyvalue_batch_set_many
#define wasi_keyvalue_batch_delete_many wasmcloud_keyvalue_batch_delete_many

// ---- Compare-and-swap -------------------------------------------------------------------------

typedef struct {
    wasi_keyvalue_store_borrow_bucket_t bucket;
    imports_string_t key;
    wasmcloud_keyvalue_cas_option_entry_t seen;
} shape_attempt_t;

typedef shape_attempt_t *wasi_keyvalue_atomics_own_cas_t;

typedef struct {
    uint8_t tag;
    union {
        wasi_keyvalue_store_error_t store_error;
        wasi_keyvalue_atomics_own_cas_t cas_failed;
    } val;
} wasi_keyvalue_atomics_cas_error_t;

#define WASI_KEYVALUE_ATOMICS_CAS_ERROR_STORE_ERROR 0
#define WASI_KEYVALUE_ATOMICS_CAS_ERROR_CAS_FAILED 1

static void shape_cas_drop(shape_attempt_t *attempt) {
    wasmcloud_keyvalue_cas_option_entry_free(&attempt->seen);
    free(attempt->key.ptr);
    free(attempt);
}

static bool shape_cas_new(wasi_keyvalue_store_borrow_bucket_t bucket, imports_string_t *key, shape_attempt_t **made,
    wasi_keyvalue_store_error_t *error) {
    shape_attempt_t *attempt = malloc(sizeof *attempt);
    if (!wasmcloud_keyvalue_cas_current(bucket, key, &attempt->seen, error)) {
        free(attempt);
        return false;
    }
    attempt->bucket = bucket;
    attempt->key.len = key->len;
    attempt->key.ptr = malloc(key->len + 1);
    memcpy(attempt->key.ptr, key->ptr, key->len);
    *made = attempt;
    return true;
}

static bool shape_cas_current(const shape_attempt_t *attempt, imports_option_list_u8_t *value,
    wasi_keyvalue_store_error_t *error) {
    (void)error;
    value->is_some = attempt->seen.is_some;
    if (value->is_some) {
        imports_list_u8_t seen = attempt->seen.val.value;
        value->val.len = seen.len;
        value->val.ptr = malloc(seen.len + 1);
        memcpy(value->val.ptr, seen.ptr, seen.len);
    }
    return true;
}

static bool shape_swap(shape_attempt_t *attempt, imports_list_u8_t *value, wasi_keyvalue_atomics_cas_error_t *failure) {
    wasi_keyvalue_store_error_t *error = &failure->val.store_error;
    wasmcloud_keyvalue_cas_cas_result_t result = {.tag = WASMCLOUD_KEYVALUE_CAS_CAS_RESULT_SWAPPED};
    bool ok;
    failure->tag = WASI_KEYVALUE_ATOMICS_CAS_ERROR_STORE_ERROR;
    if (attempt->seen.is_some) {
        wasmcloud_keyvalue_cas_cas_options_t options = {
            .require_version = {.is_some = true, .val = attempt->seen.val.version}};
        ok = wasmcloud_keyvalue_cas_swap(attempt->bucket, &attempt->key, value, &options, &result, error);
    } else {
        wasmcloud_keyvalue_types_set_options_t options = {.if_not_exists = true};
        ok = wasmcloud_keyvalue_types_method_bucket_set(attempt->bucket, &attempt->key, value, &options, error);
        if (!ok && error->tag == WASMCLOUD_KEYVALUE_TYPES_ERROR_PRECONDITION_FAILED) {
            result.tag = WASMCLOUD_KEYVALUE_CAS_CAS_RESULT_STALE;
            ok = wasmcloud_keyvalue_cas_current(attempt->bucket, &attempt->key, &result.val.stale, error);
        }
    }
    if (!ok || result.tag == WASMCLOUD_KEYVALUE_CAS_CAS_RESULT_SWAPPED) {
        shape_cas_drop(attempt);
        return ok;
    }
    wasmcloud_keyvalue_cas_option_entry_free(&attempt->seen);
    attempt->seen = result.val.stale;
    failure->tag = WASI_KEYVALUE_ATOMICS_CAS_ERROR_CAS_FAILED;
    failure->val.cas_failed = attempt;
    return false;
}

#define wasi_keyvalue_atomics_static_cas_new shape_cas_new
#define wasi_keyvalue_atomics_borrow_cas(cas) (cas)
#define wasi_keyvalue_atomics_method_cas_current shape_cas_current
#define wasi_keyvalue_atomics_swap shape_swap
#define wasi_keyvalue_atomics_cas_drop_own shape_cas_drop
