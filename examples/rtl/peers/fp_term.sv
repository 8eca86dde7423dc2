// A product of floating-point numbers as a fixed-point one: the peer for area.
//
// Sign, exponent and fraction as in IEEE 754, subnormal numbers included. The largest exponent
// field (Inf and NaN) does not occur. The significands' exact product is shifted to the
// accumulator's last bit as lns_term does it: the largest product takes ACC_BITS - HEADROOM
// bits, bits below the last one are dropped, nothing is rounded.
module fp_term #(
    parameter int EXPONENT_BITS = 5,
    parameter int FRACTION_BITS = 10,
    parameter int ACC_BITS = 24,
    parameter int HEADROOM = 4,
    parameter int BITS = 1 + EXPONENT_BITS + FRACTION_BITS,                   // follows
    parameter int TERM_BITS = ACC_BITS > HEADROOM ? ACC_BITS - HEADROOM : 1  // follows
) (
    input  logic [BITS - 1:0] a,
    input  logic [BITS - 1:0] b,
    output logic negative,
    output logic [TERM_BITS - 1:0] magnitude
);
    localparam int N_BITS = 2 * FRACTION_BITS + 2;
    localparam int TOP_BITS = TERM_BITS > N_BITS ? TERM_BITS : N_BITS;
    localparam int TOP_SHIFT = TERM_BITS - N_BITS;
    localparam int TOP_EXPONENT = 2 * (2**EXPONENT_BITS - 2);

    wire [EXPONENT_BITS - 1:0] a_field = a[FRACTION_BITS +: EXPONENT_BITS];
    wire [EXPONENT_BITS - 1:0] b_field = b[FRACTION_BITS +: EXPONENT_BITS];
    wire a_normal = a_field != 0;
    wire b_normal = b_field != 0;
    wire [FRACTION_BITS:0] a_significand = {a_normal, a[FRACTION_BITS - 1:0]};
    wire [FRACTION_BITS:0] b_significand = {b_normal, b[FRACTION_BITS - 1:0]};

    // The exponent of a subnormal number is 1, its field 0.
    wire [EXPONENT_BITS:0] exponent = a_field + b_field + !a_normal + !b_normal;
    wire [EXPONENT_BITS:0] below_top = TOP_EXPONENT - exponent;
    wire [N_BITS - 1:0] n = a_significand * b_significand;

    wire [TOP_BITS - 1:0] wide = n;
    wire [TOP_BITS - 1:0] top = TOP_SHIFT >= 0 ? wide << TOP_SHIFT : wide >> -TOP_SHIFT;
    assign magnitude = top[TERM_BITS - 1:0] >> below_top;
    assign negative = a[BITS - 1] ^ b[BITS - 1];
endmodule
