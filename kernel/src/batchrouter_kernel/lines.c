/* Columns of text and the constants between them -> lines of JSON, in one pass over the bytes.
 *
 * Offsets and data are laid out as Arrow lays them out. Nothing is allocated, and nothing is written
 * beyond `out_bytes`: a row is begun only if it fits however much of it has to be escaped.
 * Little-endian machines only, as all are that wheels are built for.
 */
#include <stdint.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
enum { WORD = 8, LONGEST_ESCAPE = 6 };

struct cells {
    const int32_t *offsets; /* one more than there are rows */
    const uint8_t *data;
    int32_t is_safe; /* holds nothing that JSON escapes */
};

struct constant {
    const uint8_t *data;
    int64_t bytes;
};

static const uint64_t ones = 0x0101010101010101u, tops = 0x8080808080808080u;

/* The top bit of each byte of `word` that JSON escapes; exact up to and including the lowest. */
static inline uint64_t special(uint64_t word) {
    uint64_t quote = word ^ (ones * '"'), backslash = word ^ (ones * '\\');
    return (((word - ones * ' ') & ~word) | ((quote - ones) & ~quote)
            | ((backslash - ones) & ~backslash)) & tops;
}

static inline uint8_t *escape(uint8_t byte, uint8_t *out) {
    static const char hex[] = "0123456789abcdef";
    *out++ = '\\';
    switch (byte) {
    case '"': case '\\': *out++ = byte; break;
    case '\b': *out++ = 'b'; break;
    case '\t': *out++ = 't'; break;
    case '\n': *out++ = 'n'; break;
    case '\f': *out++ = 'f'; break;
    case '\r': *out++ = 'r'; break;
    default:
        memcpy(out, "u00", 3);
        out[3] = hex[byte >> 4];
        out[4] = hex[byte & 15];
        out += 5;
    }
    return out;
}

static uint8_t *escaped(const uint8_t *text, const uint8_t *end, uint8_t *out) {
    while (end - text >= WORD) {
        uint64_t word, found;
        memcpy(&word, text, WORD);
        memcpy(out, &word, WORD);
        found = special(word);
        if (!found) {
            text += WORD;
            out += WORD;
            continue;
        }
        int plain = __builtin_ctzll(found) / 8;
        out = escape(text[plain], out + plain);
        text += plain + 1;
    }
    for (; text < end; text++) {
        if (*text < ' ' || *text == '"' || *text == '\\')
            out = escape(*text, out);
        else
            *out++ = *text;
    }
    return out;
}

/* Write rows from `start` on, until `rows` or until the next one may not fit.
 *
 * A line is constants[0], then for each column its cell and the constant behind it. `ends` takes for
 * each row that is written the offset behind its last byte. Returns how many rows were written. */
EXPORT int64_t batchrouter_write_lines(const struct cells *columns, int64_t column_count,
                                       const struct constant *constants, int64_t start, int64_t rows,
                                       uint8_t *out, int64_t out_bytes, int64_t *ends) {
    uint8_t *begin = out, *limit = out + out_bytes;
    int64_t constant_bytes = 0, row;
    for (int64_t at = 0; at <= column_count; at++)
        constant_bytes += constants[at].bytes;
    for (row = start; row < rows; row++) {
        int64_t needed = constant_bytes;
        for (int64_t at = 0; at < column_count; at++) {
            int64_t bytes = columns[at].offsets[row + 1] - columns[at].offsets[row];
            needed += columns[at].is_safe ? bytes : bytes * LONGEST_ESCAPE;
        }
        if (needed > limit - out)
            break;
        memcpy(out, constants[0].data, constants[0].bytes);
        out += constants[0].bytes;
        for (int64_t at = 0; at < column_count; at++) {
            const uint8_t *text = columns[at].data + columns[at].offsets[row];
            const uint8_t *end = columns[at].data + columns[at].offsets[row + 1];
            if (columns[at].is_safe) {
                memcpy(out, text, end - text);
                out += end - text;
            } else {
                out = escaped(text, end, out);
            }
            memcpy(out, constants[at + 1].data, constants[at + 1].bytes);
            out += constants[at + 1].bytes;
        }
        ends[row - start] = out - begin;
    }
    return row - start;
}
