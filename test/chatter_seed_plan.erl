%% The plan of the seed's Chatter (chatter_ex 0.0.13 and later), for counting only: whom a node
%% sends to by TCP and who multicasts, when everybody knows who hears whom. Hearing is symmetric
%% here: members of a subnet hear each other.
%%
%% A node that broadcasts to a list always multicasts first. Targets that hear it leave the list,
%% but for one drawn at random from all. What is left is put together by subnet, shuffled, and
%% halved again and again; the first of each half is sent to, with the others as the list that it
%% is to broadcast to in turn.
-module(chatter_seed_plan).

-export([counts/4]).

-type counts() :: #{multicasts := float(), tcp := float(), between := float(),
                    arrivals := float()}.

%% Means over so many draws: multicasts, TCP sends, those of them to another subnet, and copies of
%% the message that arrive at nodes.
-spec counts(Origin :: pos_integer(), [pos_integer()], fun((pos_integer()) -> term()),
             pos_integer()) -> counts().
counts(Origin, Targets, Subnet, Draws) ->
    Sums = lists:foldl(fun(_, Sums) ->
                               add(Sums, broadcast(Origin, Targets, Subnet, [Origin | Targets]))
                       end, none(), lists:seq(1, Draws)),
    maps:map(fun(_, Sum) -> Sum / Draws end, Sums).

none() -> #{multicasts => 0, tcp => 0, between => 0, arrivals => 0}.

add(A, B) -> maps:merge_with(fun(_, X, Y) -> X + Y end, A, B).

broadcast(Node, Targets, Subnet, All) ->
    Near = [N || N <- All, N =/= Node, Subnet(N) =:= Subnet(Node)],
    Cast = (none())#{multicasts => 1, arrivals => length(Near)},
    Left = kept(Targets) ++ [N || N <- Targets, not lists:member(N, Near)],
    Groups = maps:values(maps:groups_from_list(Subnet, lists:usort(Left))),
    lists:foldl(fun([Head | Rest], Sums) ->
                        Between = case Subnet(Head) =:= Subnet(Node) of true -> 0; false -> 1 end,
                        Sent = #{multicasts => 0, tcp => 1, between => Between, arrivals => 1},
                        add(add(Sums, Sent), broadcast(Head, Rest, Subnet, All))
                end, Cast, halves(shuffle(Groups))).

kept([]) -> [];
kept(Targets) -> [lists:nth(rand:uniform(length(Targets)), Targets)].

halves([]) -> [];
halves(Groups) ->
    {Chunk, Rest} = lists:split((length(Groups) + 1) div 2, Groups),
    [shuffle(lists:append(Chunk)) | halves(Rest)].

shuffle(List) -> [X || {_, X} <- lists:sort([{rand:uniform(), X} || X <- List])].
