// Multiplies and accumulates VECTOR pairs of floating-point numbers a clock, in fixed point.
module fp_mac #(
    parameter int EXPONENT_BITS = 5,
    parameter int FRACTION_BITS = 10,
    parameter int ACC_BITS = 24,
    parameter int HEADROOM = 4,
    parameter int VECTOR = 1,
    parameter int BITS = 1 + EXPONENT_BITS + FRACTION_BITS  // follows
) (
    input  logic clk,
    input  logic first,
    input  logic [VECTOR * BITS - 1:0] a,
    input  logic [VECTOR * BITS - 1:0] b,
    output logic [ACC_BITS - 1:0] acc
);
    localparam int TERM_BITS = ACC_BITS > HEADROOM ? ACC_BITS - HEADROOM : 1;
    localparam int SUM_BITS = TERM_BITS + 1 + $clog2(VECTOR);

    wire [VECTOR - 1:0] negative;
    wire [VECTOR * TERM_BITS - 1:0] magnitude;
    for (genvar i = 0; i < VECTOR; i++) begin : lane
        fp_term #(
            .EXPONENT_BITS(EXPONENT_BITS), .FRACTION_BITS(FRACTION_BITS),
            .ACC_BITS(ACC_BITS), .HEADROOM(HEADROOM)
        ) term (
            .a(a[i * BITS +: BITS]), .b(b[i * BITS +: BITS]), .negative(negative[i]),
            .magnitude(magnitude[i * TERM_BITS +: TERM_BITS])
        );
    end

    function automatic logic signed [SUM_BITS - 1:0] sum_of(
        input logic [VECTOR - 1:0] negative,
        input logic [VECTOR * TERM_BITS - 1:0] magnitude
    );
        logic signed [SUM_BITS - 1:0] term;
        sum_of = 0;
        for (int i = 0; i < VECTOR; i++) begin
            term = magnitude[i * TERM_BITS +: TERM_BITS];
            // -x is ~x + 1: adders alone, of which tools make a tree.
            sum_of = sum_of + (term ^ {SUM_BITS{negative[i]}}) + negative[i];
        end
    endfunction

    wire signed [SUM_BITS - 1:0] sum = sum_of(negative, magnitude);
    saturating_accumulator #(.SUM_BITS(SUM_BITS), .ACC_BITS(ACC_BITS)) accumulator (
        .clk(clk), .first(first), .sum(sum), .acc(acc)
    );
endmodule
