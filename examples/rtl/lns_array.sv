// COLUMNS units share a vector of a: dot products of one row of a with COLUMNS columns of b.
module lns_array #(
    parameter int A_BITS = 8,
    parameter int B_BITS = 8,
    parameter int LOG2_BASE_FACTOR = 3,
    parameter int LUT_BITS = 3,
    parameter int ACC_BITS = 24,
    parameter int HEADROOM = 4,
    parameter int FRACTION_BITS = 8,
    parameter [(FRACTION_BITS + 2) * 2**LUT_BITS - 1:0] TABLE = 0,
    parameter int VECTOR = 16,
    parameter int BINS = 0,
    parameter int ACCUMULATORS = BINS ? 2**LUT_BITS : 1,  // follows
    parameter int COLUMNS = 4
) (
    input  logic clk,
    input  logic first,
    input  logic [VECTOR * A_BITS - 1:0] a,
    input  logic [COLUMNS * VECTOR * B_BITS - 1:0] b,
    output logic [COLUMNS * ACCUMULATORS * ACC_BITS - 1:0] acc
);
    for (genvar n = 0; n < COLUMNS; n++) begin : column
        lns_mac #(
            .A_BITS(A_BITS), .B_BITS(B_BITS), .LOG2_BASE_FACTOR(LOG2_BASE_FACTOR),
            .LUT_BITS(LUT_BITS), .ACC_BITS(ACC_BITS), .HEADROOM(HEADROOM),
            .FRACTION_BITS(FRACTION_BITS), .TABLE(TABLE), .VECTOR(VECTOR), .BINS(BINS)
        ) mac (
            .clk(clk), .first(first), .a(a),
            .b(b[n * VECTOR * B_BITS +: VECTOR * B_BITS]),
            .acc(acc[n * ACCUMULATORS * ACC_BITS +: ACCUMULATORS * ACC_BITS])
        );
    end
endmodule
