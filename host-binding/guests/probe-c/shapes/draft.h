// The names of form A for the first draft: a cursor is a number, written in decimal; an increment has no sign; there is no
// compare-and-swap, and each call of it is refused here.

// ---- Cursors ----------------------------------------------------------------------------------

typedef struct {
    bool is_some;
    imports_string_t val;
} shape_cursor_t;

typedef struct {
    imports_list_string_t keys;
    shape_cursor_t cursor;
} shape_page_t;

static void shape_cursor_free(shape_cursor_t *cursor) {
    if (cursor->is_some) free(cursor->val.ptr);
}

static bool shape_refuse(wasi_keyvalue_store_error_t *error, const char *text) {
    error->tag = WASI_KEYVALUE_STORE_ERROR_OTHER;
    imports_string_dup(&error->val.other, text);
    return false;
}

// A text that is no number is no cursor of this shape: the host never sees it.
static bool shape_number(const imports_string_t *text, uint64_t *number) {
    *number = 0;
    if (text->len == 0 || text->len > 20) return false;
    for (size_t i = 0; i < text->len; i++) {
        uint8_t digit = text->ptr[i] - '0';
        if (digit > 9 || __builtin_mul_overflow(*number, 10, number) || __builtin_add_overflow(*number, digit, number))
            return false;
    }
    return text->len == 1 || text->ptr[0] != '0';
}

static bool shape_list_keys(wasi_keyvalue_store_borrow_bucket_t bucket, imports_string_t *cursor, shape_page_t *page,
    wasi_keyvalue_store_error_t *error) {
    uint64_t at;
    if (cursor && !shape_number(cursor, &at)) return shape_refuse(error, "invalid-cursor");
    wasi_keyvalue_store_key_response_t found;
    if (!wasi_keyvalue_store_method_bucket_list_keys(bucket, cursor ? &at : NULL, &found, error)) return false;
    page->keys = found.keys;
    page->cursor.is_some = found.cursor.is_some;
    if (found.cursor.is_some) {
        // From the end on; no printf, which would be a third of the guest.
        char digits[21], *first = digits + sizeof digits - 1;
        *first = 0;
        uint64_t left = found.cursor.val;
        do *--first = (char)('0' + left % 10);
        while (left /= 10);
        imports_string_dup(&page->cursor.val, first);
    }
    return true;
}

#define imports_option_string_t shape_cursor_t
#define imports_option_string_free shape_cursor_free
#define wasi_keyvalue_store_key_response_t shape_page_t
#define wasi_keyvalue_store_method_bucket_list_keys shape_list_keys

// ---- Increment --------------------------------------------------------------------------------

// A negative delta goes over as the number that has its bits: above the largest s64.
static bool shape_increment(wasi_keyvalue_store_borrow_bucket_t bucket, imports_string_t *key, int64_t delta, int64_t *sum,
    wasi_keyvalue_store_error_t *error) {
    return wasi_keyvalue_atomics_increment(bucket, key, (uint64_t)delta, (uint64_t *)sum, error);
}

#define wasi_keyvalue_atomics_increment shape_increment

// ---- Compare-and-swap -------------------------------------------------------------------------

typedef struct {
    int32_t none;
} wasi_keyvalue_atomics_own_cas_t;

typedef struct {
    uint8_t tag;
    union {
        wasi_keyvalue_store_error_t store_error;
        wasi_keyvalue_atomics_own_cas_t cas_failed;
    } val;
} wasi_keyvalue_atomics_cas_error_t;

#define WASI_KEYVALUE_ATOMICS_CAS_ERROR_CAS_FAILED 1

static bool shape_cas_new(wasi_keyvalue_store_borrow_bucket_t bucket, imports_string_t *key,
    wasi_keyvalue_atomics_own_cas_t *cas, wasi_keyvalue_store_error_t *error) {
    (void)bucket, (void)key, (void)cas;
    return shape_refuse(error, "no-cas-in-this-shape");
}

static bool shape_cas_current(wasi_keyvalue_atomics_own_cas_t cas, imports_option_list_u8_t *value,
    wasi_keyvalue_store_error_t *error) {
    (void)cas, (void)value;
    return shape_refuse(error, "no-cas-in-this-shape");
}

static bool shape_swap(wasi_keyvalue_atomics_own_cas_t cas, imports_list_u8_t *value,
    wasi_keyvalue_atomics_cas_error_t *error) {
    (void)cas, (void)value;
    error->tag = 0;
    return shape_refuse(&error->val.store_error, "no-cas-in-this-shape");
}

#define wasi_keyvalue_atomics_static_cas_new shape_cas_new
#define wasi_keyvalue_atomics_borrow_cas(cas) (cas)
#define wasi_keyvalue_atomics_method_cas_current shape_cas_current
#define wasi_keyvalue_atomics_swap shape_swap
#define wasi_keyvalue_atomics_cas_drop_own(cas) ((void)(cas))
