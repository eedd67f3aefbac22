%% SPDX-License-Identifier: Apache-2.0
%%
%% The protocol of the epmd of Chatter: its bytes, and its answers beside those of the real epmd.
-module(chatter_epmd_SUITE).
-include_lib("common_test/include/ct.hrl").
-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).
-import(chatter_epmd_lab, [wait_until/1, free_port/0, names/1, frame/1, alive2/2, alive2/3,
                           alive/2, exchange/3, refused/1]).

suite() -> [{timetrap, {seconds, 180}}].

all() -> [{group, G} || {G, _, _} <- groups()].

groups() ->
    [{wire, [parallel], [golden_bytes, truncated_bytes, mutated_bytes, extra_words, creations,
                         old_names_are_bounded]},
     {differential, [], [same_answers, same_answers_relaxed, same_answers_to_fragments,
                         same_answers_to_mutants, same_order_of_names]}].

init_per_testcase(_Case, Config) -> [{epmd, free_port()} | Config].

end_per_testcase(_Case, _Config) -> ok.

%%% Wire ---------------------------------------------------------------------------------

golden_bytes(_) ->
    %% Given the bytes of the protocol's document, expect them read, and written, exactly.
    Entry = #{name => <<"abc">>, port => 16#1234, node_type => 77, protocol => 0, high => 6,
              low => 5, extra => <<"x">>},
    Alive = <<0, 17, 120, 16#12, 16#34, 77, 0, 0, 6, 0, 5, 0, 3, "abc", 0, 1, "x">>,
    ?assertEqual(Alive, iolist_to_binary(chatter_epmd_wire:alive2_request(Entry))),
    ?assertEqual({ok, {alive2, Entry}}, decode(Alive)),
    Port2Req = <<0, 4, 122, "abc">>,
    ?assertEqual(Port2Req, iolist_to_binary(chatter_epmd_wire:port2_request(<<"abc">>))),
    ?assertEqual({ok, {port2, <<"abc">>}}, decode(Port2Req)),
    ?assertEqual({ok, {port2, <<"abc">>}}, decode(<<0, 5, 122, "abc", 0>>)),
    ?assertEqual({ok, {stop, <<"abc">>}}, decode(<<0, 4, 115, "abc">>)),
    [?assertEqual({ok, Tag}, decode(iolist_to_binary(chatter_epmd_wire:simple_request(Tag))))
     || Tag <- [names, dump, kill]],
    Port2 = <<119, 0, 16#12, 16#34, 77, 0, 0, 6, 0, 5, 0, 3, "abc", 0, 1, "x">>,
    ?assertEqual(Port2, iolist_to_binary(chatter_epmd_wire:port2_response(Entry))),
    ?assertEqual({ok, Entry}, chatter_epmd_wire:decode_port2_response(Port2)),
    ?assertEqual(<<119, 1>>, chatter_epmd_wire:port2_response(none)),
    ?assertEqual(<<118, 0, 16#01020304:32>>, chatter_epmd_wire:alive2_response(6, 16#01020304)),
    ?assertEqual(<<121, 0, 2:16>>, chatter_epmd_wire:alive2_response(5, 4)),
    ?assertEqual(<<118, 1, 99:32>>, chatter_epmd_wire:alive2_refusal(6)),
    ?assertEqual(<<121, 1, 99:16>>, chatter_epmd_wire:alive2_refusal(5)),
    ?assertEqual(<<4369:32, "name a at port 1\n">>,
                 iolist_to_binary(chatter_epmd_wire:names_response(4369, [{<<"a">>, 1}]))).

truncated_bytes(_) ->
    %% Given every prefix of each request and answer, expect an error or a wish for more.
    Alive = alive2(<<"abc">>, 1, #{extra => <<"extra">>}),
    <<_:16, Body/binary>> = Alive,
    [?assertMatch({error, _}, chatter_epmd_wire:decode_request(binary:part(Body, 0, N)))
     || N <- lists:seq(0, byte_size(Body) - 1)],
    Port2 = <<119, 0, 1:16, 77, 0, 6:16, 5:16, 3:16, "abc", 1:16, "x">>,
    [?assertEqual(more, chatter_epmd_wire:decode_port2_response(binary:part(Port2, 0, N)))
     || N <- lists:seq(0, byte_size(Port2) - 1)],
    [?assertEqual(more, chatter_epmd_wire:decode_alive2_response(binary:part(R, 0, N)))
     || R <- [<<118, 0, 7:32>>, <<121, 0, 1:16>>], N <- lists:seq(0, byte_size(R) - 1)].

mutated_bytes(_) ->
    %% Given random bytes and mutated requests, expect every decoder to answer, never to crash.
    rand:seed(exsss, seed()),
    [begin
         Bytes = mutate(alive2(<<"some_name">>, 4711, #{extra => <<"chatter:1,creation:77">>})),
         _ = chatter_epmd_wire:request_length(Bytes),
         _ = decode(Bytes),
         _ = chatter_epmd_wire:decode_alive2_response(Bytes),
         _ = chatter_epmd_wire:decode_port2_response(Bytes),
         _ = chatter_epmd_wire:decode_names_response(Bytes),
         #{} = chatter_epmd_wire:decode_extra(Bytes)
     end || _ <- lists:seq(1, 20000)].

extra_words(_) ->
    %% Given what Chatter says in an extra, and what others might, expect only sense to be read.
    Read = fun chatter_epmd_wire:decode_extra/1,
    ?assertEqual(<<"chatter:29999">>, chatter_epmd_wire:encode_extra(#{chatter_port => 29999})),
    ?assertEqual(<<>>, chatter_epmd_wire:encode_extra(#{})),
    Both = #{chatter_port => 29999, creation => 4},
    ?assertEqual(Both, Read(chatter_epmd_wire:encode_extra(Both))),
    ?assertEqual(#{chatter_port => 5}, Read(<<"other,chatter:5,more:1">>)),
    [?assertEqual(#{}, Read(Bad)) || Bad <- [<<>>, <<"chatter">>, <<"chatter:">>, <<"chatter:0">>,
                                             <<"chatter:65536">>, <<"chatter:-1">>,
                                             <<"creation:3">>, <<"creation:4294967296">>,
                                             <<"creation:99999999999999999999">>, <<0, 1, 255>>]].

creations(_) ->
    %% Given one name with several lives, expect a new creation each time, never below 4.
    Register = fun(Extra, Random, T) ->
                       Entry = #{name => <<"a">>, port => 1, node_type => 77, protocol => 0,
                                 high => 6, low => 6, extra => Extra},
                       {ok, C, T1} = chatter_epmd_names:register(Entry, {self(), 1}, Random, T),
                       {C, chatter_epmd_names:unregister(self(), T1)}
               end,
    T0 = chatter_epmd_names:new(10, 10),
    {16#fffffffe, T1} = Register(<<>>, 16#fffffffe, T0),
    {16#ffffffff, T2} = Register(<<>>, 77, T1),
    {4, T3} = Register(<<>>, 77, T2),
    {5, T4} = Register(<<>>, 77, T3),
    %% A node that comes from a dead registry brings its own, and the next life counts from it.
    {1000, T5} = Register(<<"creation:1000">>, 77, T4),
    {1001, _} = Register(<<>>, 77, T5).

old_names_are_bounded(_) ->
    %% Given more old names than are remembered, expect the oldest forgotten.
    Life = fun(N, T) ->
                   Entry = #{name => integer_to_binary(N), port => N, node_type => 77,
                             protocol => 0, high => 6, low => 6, extra => <<>>},
                   {ok, _, T1} = chatter_epmd_names:register(Entry, {self(), 1}, 4, T),
                   chatter_epmd_names:unregister(self(), T1)
           end,
    Table = lists:foldl(Life, chatter_epmd_names:new(5, 3), lists:seq(1, 100)),
    {[], Old} = chatter_epmd_names:dump(Table),
    ?assertEqual([<<"98">>, <<"99">>, <<"100">>], [N || {N, _, _} <- Old]).

%%% Beside the real epmd -----------------------------------------------------------------

same_answers(Config) ->
    %% Given the same requests, whole, expect of both the same bytes and the same open or close.
    {Real, Ours} = both(Config, []),
    Holders = [{alive(P, alive2(<<"held">>, 4711, #{extra => <<"ex", 0, "tra">>})), P}
               || P <- [Real, Ours]],
    [same(Real, Ours, [frame(Body)], keep) || Body <- bodies()],
    [gen_tcp:close(S) || {{0, _, S}, _} <- Holders].

same_answers_relaxed(Config) ->
    %% Given both with relaxed checks, expect STOP and KILL to do the same, with live names.
    {Real, Ours} = both(Config, ["-relaxed_command_check"]),
    Holders = [S || P <- [Real, Ours], {0, _, S} <- [alive(P, alive2(<<"held">>, 4711))]],
    [same(Real, Ours, [frame(Body)], keep)
     || Body <- ["shel", "s", "sheld", "sheld", "n", "d", [$z, "held"]]],
    [?assertEqual({error, closed}, gen_tcp:recv(S, 0, 5000)) || S <- Holders],
    [{0, _, _} = alive(P, alive2(<<"held">>, 4711)) || P <- [Real, Ours]],
    same(Real, Ours, [frame("k")], keep),
    [wait_until(fun() -> refused(P) end) || P <- [Real, Ours]].

same_answers_to_fragments(Config) ->
    %% Given requests byte by byte, cut short and closed, and with bytes behind them, expect the
    %% same of both.
    {Real, Ours} = both(Config, []),
    Alive = alive2(<<"frag">>, 1, #{extra => <<"x">>}),
    Ask = frame("zfrag"),
    [same(Real, Ours, [<<B>> || <<B>> <= Whole], keep) || Whole <- [Ask, frame("n"), Alive]],
    [same(Real, Ours, [binary:part(Whole, 0, N)], shutdown)
     || Whole <- [Alive, Ask], N <- lists:seq(0, byte_size(Whole))],
    [same(Real, Ours, Pieces, keep)
     || Pieces <- [[<<Ask/binary, 1>>], [<<Ask/binary, Ask/binary>>], [<<0>>, <<1, "n">>],
                   [<<0, 0>>], [<<0, 0, "n">>], [<<255, 255>>], [<<3057:16>>], [<<3058:16>>],
                   [<<3057:16, $n, 0:(3056 * 8)>>], [<<3058:16, $n, 0:(3057 * 8)>>]]].

same_answers_to_mutants(Config) ->
    %% Given some hundred mutated requests, expect the same of both.
    rand:seed(exsss, seed()),
    {Real, Ours} = both(Config, []),
    %% With a name held, a mutant that is a KILL does no harm.
    [{0, _, _} = alive(P, alive2(<<"held">>, 1)) || P <- [Real, Ours]],
    Seeds = [alive2(<<"mutant">>, 7, #{extra => <<"x">>}), frame("zmutant"), frame("n"),
             frame("smutant"), frame(<<>>)],
    [same(Real, Ours, [mutate(lists:nth(rand:uniform(5), Seeds))], shutdown)
     || _ <- lists:seq(1, 300)].

same_order_of_names(Config) ->
    %% Given names that come and go, expect NAMES and DUMP in the same order as epmd has them.
    {Real, Ours} = both(Config, []),
    [begin
         Sockets = [begin {0, _, S} = alive(P, alive2(<<"n", N>>, N)), {N, S} end
                    || N <- "abcdef"],
         [begin
              {N, S} = lists:keyfind(N, 1, Sockets),
              gen_tcp:close(S),
              wait_until(fun() -> not lists:keymember(<<"n", N>>, 1, names(P)) end)
          end || N <- "bfa"],
         {0, _, _} = alive(P, alive2(<<"nb">>, $b))
     end || P <- [Real, Ours]],
    same(Real, Ours, [frame("n")], keep),
    same(Real, Ours, [frame("d")], keep).

bodies() ->
    Long = binary:copy(<<"a">>, 255),
    [<<_:16, Dup/binary>>, <<_:16, DupOld/binary>>, <<_:16, TooLong/binary>>,
     <<_:16, BadUtf8/binary>>, <<_:16, BigExtra/binary>>, <<_:16, Nul/binary>>,
     <<_:16, WideName/binary>>] =
        [alive2(<<"held">>, 1), alive2(<<"held">>, 1, #{high => 5}),
         alive2(<<Long/binary, "a">>, 1), alive2(<<"a", 16#c0, 16#80>>, 1),
         alive2(<<"b">>, 1, #{extra => binary:copy(<<"e">>, 1021)}), alive2(<<"a", 0, "b">>, 1),
         alive2(unicode:characters_to_binary(lists:duplicate(256, 16#e5)), 1)],
    ["n", "nn", "zheld", [$z, "held", 0], [$z, "held", 0, 0], "zhel", "zheldx", "z", [$z, 0],
     [$z, "he", 0, "ld"], [$z, 16#ff], [$z, 16#c3], [$z | binary_to_list(Long) ++ "a"],
     "d", "dump", "k", "kill", "s", "sheld", "snobody", "x", "xx", "x123456789012",
     "a", "p", "y", "v", "w", <<0>>, <<255>>, Dup, DupOld, TooLong, BadUtf8, BigExtra, Nul,
     WideName, <<Dup/binary, "behind">>].

%% A real epmd and a registry in this VM.
both(Config, Args) ->
    Real = ?config(epmd, Config),
    Ours = free_port(),
    _ = chatter_epmd_lab:start_epmd(Real, Args),
    _ = chatter_epmd_lab:registry(Ours, #{relaxed => Args =/= []}),
    {Real, Ours}.

same(Real, Ours, Pieces, End) ->
    [Expected, Got] = [normal(exchange(P, Pieces, End), P) || P <- [Real, Ours]],
    ?assertEqual(Expected, Got, Pieces),
    [?assertEqual(names(Real), names(Ours), Pieces) || Expected =/= {<<"OK">>, closed}].

%% What may differ: the creation, file descriptors, and the registry's own port.
normal({<<118, 0, C:32>>, End}, _) when C >= 4 -> {<<118, 0, "creation">>, End};
normal({<<121, 0, C:16>>, End}, _) when C >= 1, C =< 3 -> {<<121, 0, "creation">>, End};
normal({<<Port:32, Text/binary>>, End}, Port) ->
    {re:replace(Text, "fd = [0-9]+", "fd = N", [global, {return, binary}]), End};
normal(Other, _) -> Other.

%%% Bytes --------------------------------------------------------------------------------

decode(Bytes) ->
    case chatter_epmd_wire:request_length(Bytes) of
        {ok, Len} when byte_size(Bytes) =:= Len + 2 ->
            chatter_epmd_wire:decode_request(binary:part(Bytes, 2, Len));
        _ -> incomplete
    end.

%% One to three random changes, the length field sometimes set right afterwards.
mutate(Bytes) -> fix_length(mutate(Bytes, rand:uniform(3)), rand:uniform(2)).

mutate(Bytes, 0) -> Bytes;
mutate(Bytes, N) ->
    At = rand:uniform(byte_size(Bytes) + 1) - 1,
    <<Head:At/binary, Tail/binary>> = Bytes,
    mutate(mutate_at(rand:uniform(3), Head, Tail), N - 1).

mutate_at(1, Head, <<_, Tail/binary>>) -> <<Head/binary, (rand:uniform(256) - 1), Tail/binary>>;
mutate_at(2, Head, Tail) -> <<Head/binary, (rand:uniform(256) - 1), Tail/binary>>;
mutate_at(_, Head, <<_, Tail/binary>>) -> <<Head/binary, Tail/binary>>;
mutate_at(_, Head, <<>>) -> Head.

fix_length(<<_:16, Body/binary>>, 1) -> frame(Body);
fix_length(Bytes, _) -> Bytes.

%% Printed first, so that a failing run can be repeated.
seed() ->
    Seed = case os:getenv("CHATTER_EPMD_SEED") of
               false -> erlang:system_time() rem 1000000007;
               Text -> list_to_integer(Text)
           end,
    ct:pal("CHATTER_EPMD_SEED=~b", [Seed]),
    Seed.
