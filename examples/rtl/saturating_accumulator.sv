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
    localparam signed [NEXT_BITS - 1:0] LARGEST = {1'b0, {(ACC_BITS - 1){1'b1}}};

    wire signed [ACC_BITS - 1:0] start = first ? 0 : acc;
    wire signed [NEXT_BITS - 1:0] next = start + sum;
    always_ff @(posedge clk) begin
        if (next > LARGEST) acc <= LARGEST;
        else if (next < -LARGEST) acc <= -LARGEST;
        else acc <= next;
    end
endmodule
