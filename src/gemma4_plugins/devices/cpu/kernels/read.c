// Reads memory and nothing else: the rate that a product of weights with a vector cannot exceed.

typedef unsigned long long u64;
typedef u64 line __attribute__((vector_size(64), aligned(1)));

// XOR of part `part` of the data into sums[part * 8 ..]; a part is a multiple of 512 bytes.
void read_part(const char *data, u64 bytes_per_part, u64 *sums, u64 part) {
    const line *at = (const line *)(data + part * bytes_per_part), *end = at + bytes_per_part / sizeof(line);
    line a = {0}, b = {0}, c = {0}, d = {0};
    for (; at < end; at += 8) {
        a ^= at[0]; b ^= at[1]; c ^= at[2]; d ^= at[3];
        a ^= at[4]; b ^= at[5]; c ^= at[6]; d ^= at[7];
    }
    *(line *)(sums + part * 8) = a ^ b ^ c ^ d;
}
