// acc = clamp(acc + sum, +-(2^(ACC_BITS-1) - 1)) at each clock; with `first`, from 0.
// A sum of 0 changes nothing, so that an idle unit is fed zeros.
module saturating_accumulator #(
    parameter int SUM_BITS = 24,
    parameter int ACC_BITS = 24
) (
    input  logic clk,
    input  logic first,
    input  logic signed [SUM_BITS - 1:0] sum,
    output logic signed [ACC_BITS - 1:0] acc
);
    localparam int NEXT_BITS = (SUM_BITS > ACC_BITS ? SUM_BITS : ACC_BITS) + 1;
    localparam signed [ACC_BITS - 1:0] LARGEST = {1'b0, {(ACC_BITS - 1){1'b1}}};

    wire signed [ACC_BITS - 1:0] start = first ? 0 : acc;
    wire signed [NEXT_BITS - 1:0] next = start + sum;
    // It fits where all bits from the accumulator's sign upwards are equal, but for the smallest
    // number of two's complement, which has no counterpart.
    wire [NEXT_BITS - ACC_BITS:0] high = next[NEXT_BITS - 1:ACC_BITS - 1];
    wire fits = high == 0 || (&high && next[ACC_BITS - 2:0] != 0);
    always_ff @(posedge clk) acc <= fits ? next : next < 0 ? -LARGEST : LARGEST;
endmodule
