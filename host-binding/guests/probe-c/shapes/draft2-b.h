// The names of form A for form B: a miss of `get-many` comes with its key, which must be the key asked.

typedef struct {
    bool is_some;
    imports_tuple2_string_list_u8_t val;
} shape_pair_t;

typedef struct {
    shape_pair_t *ptr;
    size_t len;
} shape_pairs_t;

static void shape_pairs_free(shape_pairs_t *pairs) {
    for (size_t i = 0; i < pairs->len; i++) {
        if (pairs->ptr[i].is_some) imports_tuple2_string_list_u8_free(&pairs->ptr[i].val);
    }
    free(pairs->len ? pairs->ptr : NULL);
}

static bool shape_get_many(wasi_keyvalue_store_borrow_bucket_t bucket, imports_list_string_t *keys, shape_pairs_t *pairs,
    wasi_keyvalue_store_error_t *error) {
    imports_list_tuple2_string_option_list_u8_t found;
    if (!wasi_keyvalue_batch_get_many(bucket, keys, &found, error)) return false;
    pairs->len = found.len;
    pairs->ptr = found.len ? calloc(found.len, sizeof *pairs->ptr) : NULL;
    for (size_t i = 0; i < found.len; i++) {
        imports_string_t key = found.ptr[i].f0;
        if (i >= keys->len || key.len != keys->ptr[i].len || memcmp(key.ptr, keys->ptr[i].ptr, key.len)) abort();
        pairs->ptr[i].is_some = found.ptr[i].f1.is_some;
        pairs->ptr[i].val.f0 = key;
        if (found.ptr[i].f1.is_some) pairs->ptr[i].val.f1 = found.ptr[i].f1.val;
        else imports_string_free(&key);
    }
    free(found.len ? found.ptr : NULL);
    return true;
}

#define imports_list_option_tuple2_string_list_u8_t shape_pairs_t
#define imports_list_option_tuple2_string_list_u8_free shape_pairs_free
#define wasi_keyvalue_batch_get_many shape_get_many
