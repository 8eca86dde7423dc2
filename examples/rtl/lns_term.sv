// One term of a product: two codes in, a sign and a whole number out, no multiplier of codes.
//
//   p = e_a + e_b;  q = p >> g;  r = p mod 2^g;  h = r >> (g - m);  l = r mod 2^(g - m)
//   magnitude = T[h] (2^g + l)  shifted by  q - lsb - F - g,  bits below the last one dropped
//
// Combinational. Codes are two's complement, -(2^(bits-1) - 1) .. 2^(bits-1) - 1; the code
// -2^(bits-1) does not occur.
module lns_term #(
    parameter int A_BITS = 8,            // width of a code
    parameter int B_BITS = 8,
    parameter int LOG2_BASE_FACTOR = 3,  // g: 2^g codes per octave
    parameter int LUT_BITS = 3,          // m, 0 .. g
    parameter int ACC_BITS = 24,
    parameter int HEADROOM = 4,
    parameter int FRACTION_BITS = 8,     // F
    // T[h] = round(2^(h / 2^m) 2^F), entry 0 in the lowest bits. F + 2 bits each, since an
    // entry just below 2 may be rounded up to it.
    parameter [(FRACTION_BITS + 2) * 2**LUT_BITS - 1:0] TABLE = 0,
    parameter int TERM_BITS = ACC_BITS > HEADROOM ? ACC_BITS - HEADROOM : 1  // follows
) (
    input  logic [A_BITS - 1:0] a,
    input  logic [B_BITS - 1:0] b,
    output logic negative,
    output logic [TERM_BITS - 1:0] magnitude,
    output logic [(LUT_BITS > 0 ? LUT_BITS : 1) - 1:0] entry  // h
);
    localparam int P_MAX = 2**(A_BITS - 1) - 2 + 2**(B_BITS - 1) - 2;
    localparam int Q_MAX = P_MAX >> LOG2_BASE_FACTOR;
    localparam int LSB = Q_MAX + 1 + HEADROOM - (ACC_BITS - 1);
    // The shift of a term in the top octave, q = Q_MAX. All other octaves go right from there.
    localparam int TOP_SHIFT = Q_MAX - LSB - FRACTION_BITS - LOG2_BASE_FACTOR;

    localparam int WORD = FRACTION_BITS + 2;
    localparam int LINE_BITS = LOG2_BASE_FACTOR - LUT_BITS;
    localparam int N_BITS = FRACTION_BITS + LOG2_BASE_FACTOR + 2;  // n < 4 * 2^(F + g)
    localparam int TOP_BITS = TERM_BITS > N_BITS ? TERM_BITS : N_BITS;
    localparam int P_BITS = $clog2(P_MAX + 1) > LOG2_BASE_FACTOR ? $clog2(P_MAX + 1)
                                                                : LOG2_BASE_FACTOR + 1;

    // |c| - 1 is ~c where c is negative and c - 1 where it is positive. (The xor says ~c at the
    // width of a code.)
    wire a_negative = a[A_BITS - 1];
    wire b_negative = b[B_BITS - 1];
    wire [P_BITS - 1:0] e_a = a_negative ? a ^ {A_BITS{1'b1}} : a - 1;
    wire [P_BITS - 1:0] e_b = b_negative ? b ^ {B_BITS{1'b1}} : b - 1;
    wire [P_BITS - 1:0] p = e_a + e_b;
    wire zero = a == 0 || b == 0;

    // The octave as a distance from the top one.
    wire [P_BITS - 1:0] below_top = Q_MAX - (p >> LOG2_BASE_FACTOR);
    // The remainder as an entry of the table and a place on the line after it.
    wire [P_BITS - 1:0] r = p & (2**LOG2_BASE_FACTOR - 1);
    wire [P_BITS - 1:0] h = r >> LINE_BITS;
    wire [P_BITS - 1:0] l = r & (2**LINE_BITS - 1);
    assign entry = h;

    wire [WORD - 1:0] table_entry = TABLE[h * WORD +: WORD];
    wire [N_BITS - 1:0] n = table_entry * (2**LOG2_BASE_FACTOR + l);

    // To the top octave by wires only, then right by the shifter: bits fall off twice, as if once.
    wire [TOP_BITS - 1:0] wide = zero ? 0 : n;
    wire [TOP_BITS - 1:0] top = TOP_SHIFT >= 0 ? wide << TOP_SHIFT : wide >> -TOP_SHIFT;
    assign magnitude = top[TERM_BITS - 1:0] >> below_top;
    assign negative = a_negative ^ b_negative;
endmodule
