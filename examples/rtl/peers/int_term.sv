// A product of two's complement numbers.
module int_term #(
    parameter int BITS = 8
) (
    input  logic signed [BITS - 1:0] a,
    input  logic signed [BITS - 1:0] b,
    output logic signed [2 * BITS - 1:0] term
);
    assign term = a * b;
endmodule
