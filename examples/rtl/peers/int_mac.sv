// Multiplies and accumulates VECTOR pairs of whole numbers a clock: the peer for area.
// Products are exact; the accumulator is that of lns_mac. HEADROOM is not used: the products
// have no room to choose, their last bit is that of the accumulator.
module int_mac #(
    parameter int BITS = 8,
    parameter int ACC_BITS = 24,
    parameter int HEADROOM = 0,
    parameter int VECTOR = 1
) (
    input  logic clk,
    input  logic first,
    input  logic [VECTOR * BITS - 1:0] a,
    input  logic [VECTOR * BITS - 1:0] b,
    output logic [ACC_BITS - 1:0] acc
);
    localparam int SUM_BITS = 2 * BITS + $clog2(VECTOR);

    wire [VECTOR * 2 * BITS - 1:0] terms;
    for (genvar i = 0; i < VECTOR; i++) begin : lane
        int_term #(.BITS(BITS)) term (
            .a(a[i * BITS +: BITS]), .b(b[i * BITS +: BITS]), .term(terms[i * 2 * BITS +: 2 * BITS])
        );
    end

    function automatic logic signed [SUM_BITS - 1:0] sum_of(
        input logic [VECTOR * 2 * BITS - 1:0] terms
    );
        logic signed [2 * BITS - 1:0] term;
        sum_of = 0;
        for (int i = 0; i < VECTOR; i++) begin
            term = terms[i * 2 * BITS +: 2 * BITS];
            sum_of = sum_of + term;
        end
    endfunction

    wire signed [SUM_BITS - 1:0] sum = sum_of(terms);
    saturating_accumulator #(.SUM_BITS(SUM_BITS), .ACC_BITS(ACC_BITS)) accumulator (
        .clk(clk), .first(first), .sum(sum), .acc(acc)
    );
endmodule
